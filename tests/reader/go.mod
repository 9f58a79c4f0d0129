module ocopea.dev/tests/reader

go 1.24

require (
	github.com/klauspost/compress v1.18.0
	github.com/zeebo/blake3 v0.2.4
)

require github.com/klauspost/cpuid/v2 v2.0.12 // indirect
