package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/zeebo/blake3"
)

// Longest things that are read whole.
const (
	longestSmall    = 16 << 20
	longestManifest = 256 << 20
)

type key [32]byte

// kdf is BLAKE3 in its key-derivation mode.
func kdf(context string, material []byte) key {
	var out key
	blake3.DeriveKey(context, material, out[:])
	return out
}

func keyID(k key) string {
	id := kdf("ocopea repository v1 key id", k[:])
	return hex.EncodeToString(id[:16])
}

func keyed(k key, data []byte) [32]byte {
	hasher, err := blake3.NewKeyed(k[:])
	if err != nil {
		panic(err) // a key of 32 bytes is always taken
	}
	_, _ = hasher.Write(data)
	var out [32]byte
	copy(out[:], hasher.Sum(nil))
	return out
}

func counter(n uint64) []byte {
	nonce := make([]byte, 12)
	binary.BigEndian.PutUint64(nonce[4:], n)
	return nonce
}

func decrypt(k key, nonce []byte, aad string, sealed []byte) ([]byte, error) {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nonce, sealed, []byte(aad))
}

// unwrap opens Wrap(key, aad, secret).
func unwrap(k key, aad string, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 12 {
		return nil, errors.New("a wrapped key is too short")
	}
	return decrypt(k, wrapped[:12], aad, wrapped[12:])
}

func unwrapText(k key, aad, text string) ([]byte, error) {
	wrapped, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	return unwrap(k, aad, wrapped)
}

type repository struct {
	dir  string
	keys map[string]key
}

var (
	uuidForm   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

func open(dir, keyFile string) (*repository, error) {
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	r := &repository{dir: dir, keys: map[string]key{}}
	for number, row := range strings.Split(string(text), "\n") {
		row = strings.TrimSpace(row)
		if row == "" || strings.HasPrefix(row, "#") {
			continue
		}
		words := strings.Fields(row)
		if len(words) != 3 || words[0] != "ocopea-repository-key-1" {
			return nil, fmt.Errorf("line %d of the key file is not a key", number+1)
		}
		raw, err := hex.DecodeString(words[2])
		if err != nil || len(raw) != 32 || keyID(key(raw)) != words[1] {
			return nil, fmt.Errorf("line %d of the key file is damaged", number+1)
		}
		r.keys[words[1]] = key(raw)
	}
	var self struct {
		Version int    `json:"version"`
		Format  string `json:"format"`
		ID      string `json:"id"`
	}
	if err := r.small("ocopea-repository", &self); err != nil {
		return nil, err
	}
	if self.Format != "ocopea-repository" || !uuidForm.MatchString(self.ID) {
		return nil, errors.New("ocopea-repository describes something else")
	}
	layout, err := r.file("oci-layout", 1<<10)
	if err != nil {
		return nil, err
	}
	if string(layout) != `{"imageLayoutVersion":"1.0.0"}` {
		return nil, errors.New("oci-layout is not what it should be")
	}
	known := 0
	names, err := r.list("keys/repository")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var object struct {
			Version    int
			Key, Check string
		}
		if err := r.small("keys/repository/"+name, &object); err != nil {
			return nil, err
		}
		if object.Key != name {
			return nil, fmt.Errorf("keys/repository/%s is about another key", name)
		}
		k, ok := r.keys[name]
		if !ok {
			continue
		}
		check, err := unwrapText(k, "ocopea/repository-key/v1", object.Check)
		if err != nil || string(check) != "this key opens this repository" {
			return nil, fmt.Errorf("keys/repository/%s does not open with its key", name)
		}
		known++
	}
	if known == 0 {
		return nil, fmt.Errorf("none of the keys given is one of this repository: it has %s", strings.Join(names, ", "))
	}
	return r, nil
}

// file reads an object that is not content-addressed.
func (r *repository) file(name string, longest int64) ([]byte, error) {
	file, err := os.Open(filepath.Join(r.dir, filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, longest+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > longest {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, longest)
	}
	return data, nil
}

func (r *repository) list(name string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, filepath.FromSlash(name)))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, err
}

// small reads a small object (§2).
func (r *repository) small(name string, into any) error {
	data, err := r.file(name, longestSmall)
	if err != nil {
		return err
	}
	lines := bytes.SplitN(data, []byte("\n"), 3)
	if len(lines) != 3 || len(lines[2]) != 0 || digestOf(lines[0]) != string(lines[1]) {
		return fmt.Errorf("%s is damaged: its check line does not fit", name)
	}
	var version struct{ Version int }
	if err := json.Unmarshal(lines[0], &version); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if version.Version > 1 {
		return fmt.Errorf("%s is of the newer version %d", name, version.Version)
	}
	if err := json.Unmarshal(lines[0], into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (r *repository) blobPath(digest string) (string, error) {
	if !digestForm.MatchString(digest) {
		return "", fmt.Errorf("%.100q is no digest", digest)
	}
	return filepath.Join(r.dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:")), nil
}

// blob reads a blob whole and compares its digest.
func (r *repository) blob(digest string, longest int64) ([]byte, error) {
	path, err := r.blobPath(digest)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, longest+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > longest {
		return nil, fmt.Errorf("blob %s is longer than %d bytes", digest, longest)
	}
	if digestOf(data) != digest {
		return nil, fmt.Errorf("blob %s is damaged: its digest is %s", digest, digestOf(data))
	}
	return data, nil
}

// checkBlob compares digest and size without keeping the bytes.
func (r *repository) checkBlob(d descriptor) error {
	path, err := r.blobPath(d.Digest)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	defer file.Close()
	hasher := sha256.New()
	size, err := io.Copy(hasher, file)
	if err != nil {
		return err
	}
	if found := "sha256:" + hex.EncodeToString(hasher.Sum(nil)); found != d.Digest {
		return fmt.Errorf("blob %s is damaged: its digest is %s", d.Digest, found)
	}
	if size != d.Size {
		return fmt.Errorf("blob %s has %d bytes where %d are announced", d.Digest, size, d.Size)
	}
	return nil
}

type ref struct {
	Version   int
	Image     string
	Team      string
	Record    string
	Index     string
	IndexSize int64 `json:"index_size"`
}

// images lists the refs, sorted by the images' ids.
func (r *repository) images() ([]ref, error) {
	names, err := r.list("refs")
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	var refs []ref
	for _, name := range names {
		var one ref
		if err := r.small("refs/"+name, &one); err != nil {
			return nil, err
		}
		if one.Image != name || !uuidForm.MatchString(one.Image) || !uuidForm.MatchString(one.Team) {
			return nil, fmt.Errorf("refs/%.100q is about another image", name)
		}
		refs = append(refs, one)
	}
	return refs, nil
}

type wrappedKey struct {
	Team       string
	Generation uint32
	By, Sealed string
}

// teamKeys opens the keys of one generation of a team (§3.3): wrapping key and hash key.
func (r *repository) teamKeys(team string, generation uint32, id string) (wrapping, hash key, err error) {
	if !uuidForm.MatchString(team) {
		return wrapping, hash, fmt.Errorf("%.100q is no team", team)
	}
	name := fmt.Sprintf("keys/teams/%s/%08d", team, generation)
	var object struct {
		Version    int
		Team       string
		Generation uint32
		Key        string
		Wraps      []struct{ By, Sealed string }
	}
	if err := r.small(name, &object); err != nil {
		return wrapping, hash, err
	}
	if object.Team != team || object.Generation != generation || object.Key != id {
		return wrapping, hash, fmt.Errorf("%s is about other keys", name)
	}
	for _, wrap := range object.Wraps {
		k, ok := r.keys[wrap.By]
		if !ok {
			continue
		}
		both, err := unwrapText(k, "ocopea/team-key/v1/"+team+"/"+object.Key, wrap.Sealed)
		if err != nil || len(both) != 64 {
			return wrapping, hash, fmt.Errorf("%s: the wrap by %s does not open", name, wrap.By)
		}
		wrapping, hash = key(both[:32]), key(both[32:])
		if keyID(wrapping) != object.Key {
			return wrapping, hash, fmt.Errorf("%s holds another key than it says", name)
		}
		return wrapping, hash, nil
	}
	return wrapping, hash, fmt.Errorf("%s opens with none of the keys given", name)
}

// openSealed opens a sealed object of one message (§3.4).
func openSealed(data []byte, imageKey key, aad string) ([]byte, error) {
	if len(data) < 40 {
		return nil, errors.New("a sealed object is too short")
	}
	if string(data[:8]) != "OCOPSEA1" {
		return nil, fmt.Errorf("magic %q is not of a sealed object that is known", data[:8])
	}
	return decrypt(objectKey(imageKey, data[8:40]), counter(0), aad, data[40:])
}

func objectKey(imageKey key, salt []byte) key {
	return kdf("ocopea repository v1 sealed object", append(append([]byte{}, imageKey[:]...), salt...))
}
