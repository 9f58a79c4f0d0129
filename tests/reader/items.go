package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"
)

// items counts and hashes the items of a stream as docs/data-services.md says, for the kinds whose items can be told
// from the stream's bytes alone.
type items interface {
	Write(chunk []byte) (int, error)
	finish(s stream) error
}

// sum is a content hash in the making (§4.5).
type sum struct {
	key   key
	words [4]uint64
	count uint64
}

func newSum(hash key) sum { return sum{key: kdf("ocopea repository v1 item hash", hash[:])} }

func (s *sum) add(parts ...[]byte) {
	hasher, err := blake3.NewKeyed(s.key[:])
	if err != nil {
		panic(err) // a key of 32 bytes is always taken
	}
	for _, part := range parts {
		_, _ = hasher.Write(part)
	}
	digest := hasher.Sum(nil)
	var carry uint64
	for n := range s.words {
		word := binary.LittleEndian.Uint64(digest[8*n:])
		before := s.words[n]
		total := before + word + carry
		if total < before || (carry == 1 && total == before) {
			carry = 1
		} else {
			carry = 0
		}
		s.words[n] = total
	}
	s.count++
}

func (s *sum) equals(of stream) error {
	var out [32]byte
	for n, word := range s.words {
		binary.LittleEndian.PutUint64(out[8*n:], word)
	}
	if s.count != of.Items {
		return fmt.Errorf("%d items were counted where %d are announced", s.count, of.Items)
	}
	if found := hex.EncodeToString(out[:]); found != of.ItemHash {
		return fmt.Errorf("its content hash is %s where %s is announced", found, of.ItemHash)
	}
	return nil
}

func newItems(kind string, hash key, name, unit string) items {
	switch {
	case kind == "postgresql" && (unit == "rows" || unit == "sequences"):
		return &lines{sum: newSum(hash)}
	case kind == "mongodb" && unit == "documents":
		return &documents{sum: newSum(hash)}
	case kind == "volume" && name == "files":
		return &tree{sum: newSum(hash)}
	default:
		return &opaque{}
	}
}

// opaque is a stream whose items can't be told from its bytes.
type opaque struct{}

func (*opaque) Write(chunk []byte) (int, error) { return len(chunk), nil }
func (*opaque) finish(stream) error             { return nil }

// lines are rows as COPY writes them, or states of sequences: each ends with a line feed, which is no part of it.
type lines struct {
	sum  sum
	rest []byte
}

func (l *lines) Write(chunk []byte) (int, error) {
	l.rest = append(l.rest, chunk...)
	for {
		at := bytes.IndexByte(l.rest, '\n')
		if at < 0 {
			return len(chunk), nil
		}
		l.sum.add(l.rest[:at])
		l.rest = l.rest[at+1:]
	}
}

func (l *lines) finish(s stream) error {
	if len(l.rest) != 0 {
		return errors.New("it ends in the middle of a line")
	}
	return l.sum.equals(s)
}

// documents are BSON, one behind the other, each beginning with its own length.
type documents struct {
	sum  sum
	rest []byte
}

func (d *documents) Write(chunk []byte) (int, error) {
	d.rest = append(d.rest, chunk...)
	for len(d.rest) >= 4 {
		length := binary.LittleEndian.Uint32(d.rest)
		if length < 5 || length > 64<<20 {
			return 0, fmt.Errorf("a document claims to have %d bytes", length)
		}
		if uint32(len(d.rest)) < length {
			break
		}
		d.sum.add(d.rest[:length])
		d.rest = d.rest[length:]
	}
	return len(chunk), nil
}

func (d *documents) finish(s stream) error {
	if len(d.rest) != 0 {
		return errors.New("it ends in the middle of a document")
	}
	return d.sum.equals(s)
}

// tree is the stream "files" of a volume: records of entries, extents and ends.
type tree struct {
	sum  sum
	rest []byte
	file []byte
}

func (t *tree) Write(chunk []byte) (int, error) {
	t.rest = append(t.rest, chunk...)
	for len(t.rest) >= 5 {
		length := binary.LittleEndian.Uint32(t.rest[1:])
		if length > 2<<20 {
			return 0, fmt.Errorf("a record claims to have %d bytes", length)
		}
		if uint32(len(t.rest)) < 5+length {
			break
		}
		if err := t.record(t.rest[0], t.rest[5:5+length]); err != nil {
			return 0, err
		}
		t.rest = t.rest[5+length:]
	}
	return len(chunk), nil
}

func (t *tree) record(kind byte, payload []byte) error {
	switch {
	case kind == 2 && len(payload) > 0 && t.file == nil:
		if payload[0] == 2 { // a regular file: its end follows
			t.file = append([]byte{}, payload...)
		} else {
			t.sum.add(payload)
		}
	case kind == 3 && len(payload) == 16 && t.file != nil:
	case kind == 4 && len(payload) == 40 && t.file != nil:
		t.sum.add(t.file, payload[:8], payload[8:])
		t.file = nil
	case kind == 5 && len(payload) == 0 && t.file != nil:
		t.file = nil
	default:
		return fmt.Errorf("a record of kind %d with %d bytes is out of place", kind, len(payload))
	}
	return nil
}

func (t *tree) finish(s stream) error {
	if len(t.rest) != 0 || t.file != nil {
		return errors.New("it ends in the middle of a record")
	}
	return t.sum.equals(s)
}
