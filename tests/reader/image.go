package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/klauspost/compress/zstd"
)

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations"`
	Platform     *struct {
		OS, Architecture, Variant string
	} `json:"platform"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Manifests     []descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations"`
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
	imageType    = "application/vnd.ocopea.image.v1"
	configType   = "application/vnd.ocopea.config.v1"
	emptyDigest  = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
)

func (r *repository) manifest(digest string) (*manifest, error) {
	data, err := r.blob(digest, longestManifest)
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", digest, err)
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("manifest %s has schema version %d", digest, m.SchemaVersion)
	}
	return &m, nil
}

type streamInfo struct {
	Name, Unit, Content string
	Items, Bytes        uint64
}

type component struct {
	Name     string
	Manifest string
	Bytes    uint64
	Body     struct {
		Config    *struct{ Objects uint64 }
		Container *struct {
			Platforms []struct{ Platform, Manifest string }
		}
		Data *struct {
			Found   struct{ Kind string }
			Streams []streamInfo
		}
	}
}

type record struct {
	Version      int
	Image, Team  string
	Name         string
	Components   []component
	ConfigDigest string `json:"config_digest"`
}

type image struct {
	r              *repository
	ref            ref
	imageKey, hash key
	record         record
	index          *manifest
}

func (r *repository) image(ref ref) (*image, error) {
	m, err := r.manifest(ref.Record)
	if err != nil {
		return nil, err
	}
	if m.MediaType != manifestType || m.ArtifactType != imageType || m.Config.MediaType != "application/vnd.ocopea.record.v1" {
		return nil, errors.New("the ref does not name the manifest of a record")
	}
	var wrapped wrappedKey
	if err := json.Unmarshal([]byte(m.Annotations["io.github.ocopea.image-key"]), &wrapped); err != nil {
		return nil, fmt.Errorf("the image's key: %w", err)
	}
	if wrapped.Team != ref.Team {
		return nil, errors.New("ref and key name different teams")
	}
	wrapping, hash, err := r.teamKeys(wrapped.Team, wrapped.Generation, wrapped.By)
	if err != nil {
		return nil, err
	}
	raw, err := unwrapText(wrapping, "ocopea/image-key/v1/"+wrapped.Team, wrapped.Sealed)
	if err != nil || len(raw) != 32 {
		return nil, errors.New("the image's key does not open")
	}
	image := &image{r: r, ref: ref, imageKey: key(raw), hash: hash}
	if err := r.checkBlob(m.Config); err != nil {
		return nil, err
	}
	sealed, err := r.blob(m.Config.Digest, longestManifest)
	if err != nil {
		return nil, err
	}
	plain, err := openSealed(sealed, image.imageKey, "ocopea/record/v1")
	if err != nil {
		return nil, fmt.Errorf("the record: %w", err)
	}
	if err := json.Unmarshal(plain, &image.record); err != nil {
		return nil, fmt.Errorf("the record: %w", err)
	}
	if image.record.Version != 1 || image.record.Image != ref.Image || image.record.Team != ref.Team {
		return nil, errors.New("the record is about another image, or of a newer version")
	}
	// What the record needs of containers besides their own manifests, unchanged.
	for _, layer := range m.Layers {
		if err := r.checkBlob(layer); err != nil {
			return nil, err
		}
	}
	image.index, err = r.manifest(ref.Index)
	if err != nil {
		return nil, err
	}
	if err := r.checkBlob(descriptor{Digest: ref.Index, Size: ref.IndexSize}); err != nil {
		return nil, err
	}
	if image.index.MediaType != indexType || image.index.ArtifactType != imageType || len(image.index.Manifests) == 0 || image.index.Manifests[0].Digest != ref.Record {
		return nil, errors.New("the image's index does not begin with its record")
	}
	return image, nil
}

// check reads everything of an image.
func (i *image) check() ([]line, error) {
	var lines []line
	wanted := []string{i.ref.Record}
	names := map[string]bool{}
	for _, c := range i.record.Components {
		if names[c.Name] {
			return nil, fmt.Errorf("two components are called %q", c.Name)
		}
		names[c.Name] = true
		var found []line
		var err error
		switch {
		case c.Body.Config != nil:
			err = i.config(c)
			wanted = append(wanted, c.Manifest)
		case c.Body.Container != nil:
			found, err = i.container(c)
			for _, p := range c.Body.Container.Platforms {
				wanted = append(wanted, p.Manifest)
			}
		case c.Body.Data != nil:
			found, err = i.checkData(c)
			wanted = append(wanted, c.Manifest)
		default:
			err = errors.New("it is of no kind that is known")
		}
		if err != nil {
			return nil, fmt.Errorf("component %s: %w", c.Name, err)
		}
		lines = append(lines, found...)
	}
	// The index is derived: exactly the record and the components' manifests.
	var listed []string
	for _, d := range i.index.Manifests {
		if err := i.r.checkBlob(d); err != nil {
			return nil, err
		}
		listed = append(listed, d.Digest)
	}
	if !same(listed, wanted) {
		return nil, fmt.Errorf("the index lists %v where the record has %v", listed, wanted)
	}
	return lines, nil
}

func same(a, b []string) bool {
	set := func(all []string) []string {
		seen := map[string]bool{}
		var out []string
		for _, s := range all {
			if !seen[s] {
				out = append(out, s)
			}
			seen[s] = true
		}
		sort.Strings(out)
		return out
	}
	x, y := set(a), set(b)
	if len(x) != len(y) {
		return false
	}
	for n := range x {
		if x[n] != y[n] {
			return false
		}
	}
	return true
}

func (i *image) container(c component) ([]line, error) {
	var bytes uint64
	if len(c.Body.Container.Platforms) == 0 {
		return nil, errors.New("it has no platform")
	}
	var manifests []string
	for _, p := range c.Body.Container.Platforms {
		m, err := i.r.manifest(p.Manifest)
		if err != nil {
			return nil, err
		}
		for _, d := range append([]descriptor{m.Config}, m.Layers...) {
			if err := i.r.checkBlob(d); err != nil {
				return nil, err
			}
			bytes += uint64(d.Size)
		}
		manifests = append(manifests, p.Manifest)
	}
	if !same(manifests, []string{c.Manifest}) {
		// What ran is an index; each platform that was saved is one of its manifests.
		index, err := i.r.manifest(c.Manifest)
		if err != nil {
			return nil, err
		}
		in := map[string]bool{}
		for _, d := range index.Manifests {
			in[d.Digest] = true
		}
		for _, m := range manifests {
			if !in[m] {
				return nil, fmt.Errorf("%s is not part of the index that ran", m)
			}
		}
	}
	return []line{{Image: i.ref.Image, Component: c.Name, Kind: "container", Items: uint64(len(manifests)), Unit: "platforms", Bytes: bytes, Content: c.Manifest}}, nil
}

func (i *image) config(c component) error {
	m, err := i.r.manifest(c.Manifest)
	if err != nil {
		return err
	}
	if m.ArtifactType != configType || m.Config.Digest != emptyDigest || len(m.Layers) != 1 || m.Layers[0].MediaType != "application/vnd.ocopea.config.tar.zstd.v1" {
		return errors.New("its manifest is not that of a configuration")
	}
	if err := i.r.checkBlob(m.Config); err != nil {
		return err
	}
	sealed, err := i.r.blob(m.Layers[0].Digest, 256<<20)
	if err != nil {
		return err
	}
	frame, err := openSealed(sealed, i.imageKey, "ocopea/config/v1")
	if err != nil {
		return err
	}
	decoder, err := zstd.NewReader(bytes.NewReader(frame), zstd.WithDecoderMaxMemory(1<<30), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer decoder.Close()
	tar, err := io.ReadAll(io.LimitReader(decoder, 256<<20+1))
	if err != nil {
		return err
	}
	if len(tar) > 256<<20 {
		return errors.New("the configuration is longer than 256 MiB")
	}
	digest := keyed(kdf("ocopea repository v1 configuration hash", i.hash[:]), tar)
	if hex.EncodeToString(digest[:]) != i.record.ConfigDigest {
		return errors.New("the configuration's digest is not the record's")
	}
	files, err := canonical(tar)
	if err != nil {
		return err
	}
	if uint64(files) != c.Body.Config.Objects {
		return fmt.Errorf("it has %d objects where the record has %d", files, c.Body.Config.Objects)
	}
	return nil
}

// canonical walks a canonical tar (§5.3) and counts its files: made again from what it says, it must be the same.
func canonical(data []byte) (int, error) {
	var again bytes.Buffer
	count, last := 0, ""
	rest := data
	take := func() (head, content []byte, err error) {
		if len(rest) < 512 {
			return nil, nil, errors.New("the tar is cut")
		}
		head = rest[:512]
		var size int
		if _, err := fmt.Sscanf(string(head[124:135]), "%o", &size); err != nil || size < 0 || size > len(rest)-512 {
			return nil, nil, errors.New("a size in the tar is wrong")
		}
		content = rest[512 : 512+size]
		padded := (size + 511) / 512 * 512
		if 512+padded > len(rest) {
			return nil, nil, errors.New("the tar is cut")
		}
		rest = rest[512+padded:]
		return head, content, nil
	}
	for len(rest) > 1024 {
		head, content, err := take()
		if err != nil {
			return 0, err
		}
		path := string(bytes.TrimRight(head[:100], "\x00"))
		if head[156] == 'L' {
			path = string(bytes.TrimRight(content, "\x00"))
			if head, content, err = take(); err != nil {
				return 0, err
			}
			_ = head
		}
		if path <= last || len(path) > 4096 {
			return 0, fmt.Errorf("the path %.100q does not come in order", path)
		}
		last = path
		writeEntry(&again, path, content)
		count++
		if count > 100_000 {
			return 0, errors.New("more than 100 000 files")
		}
	}
	again.Write(make([]byte, 1024))
	if !bytes.Equal(again.Bytes(), data) {
		return 0, errors.New("the tar is not canonical")
	}
	return count, nil
}

func writeEntry(to *bytes.Buffer, path string, content []byte) {
	short := path
	if len(path) > 100 {
		long := append([]byte(path), 0)
		to.Write(header("././@LongLink", len(long), 'L'))
		pad(to, long)
		short = ""
		for _, char := range path {
			if len(short)+len(string(char)) > 100 {
				break
			}
			short += string(char)
		}
	}
	to.Write(header(short, len(content), '0'))
	pad(to, content)
}

func pad(to *bytes.Buffer, content []byte) {
	to.Write(content)
	if over := len(content) % 512; over != 0 {
		to.Write(make([]byte, 512-over))
	}
}

func header(path string, size int, kind byte) []byte {
	h := make([]byte, 512)
	copy(h, path)
	copy(h[100:], "0000600\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:], "00000000000\x00")
	copy(h[148:], "        ")
	h[156] = kind
	copy(h[257:], "ustar  \x00")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// checkIndex compares index.json with what the refs say it should be (§5.5).
func (r *repository) checkIndex(refs []ref) error {
	data, err := r.file("index.json", longestManifest)
	if err != nil {
		return err
	}
	var index manifest
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	var found []string
	for _, d := range index.Manifests {
		found = append(found, d.Annotations["org.opencontainers.image.ref.name"]+" "+d.Digest)
	}
	var wanted []string
	for _, ref := range refs {
		wanted = append(wanted, ref.Image+" "+ref.Index)
		own, err := r.manifest(ref.Index)
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, d := range own.Manifests {
			name := d.Annotations["io.github.ocopea.component"]
			if name == "" {
				continue
			}
			full := ref.Image + "/" + name
			if seen[name] && d.Platform != nil {
				full += "-" + d.Platform.OS + "-" + d.Platform.Architecture
				if d.Platform.Variant != "" {
					full += "-" + d.Platform.Variant
				}
			}
			seen[name] = true
			wanted = append(wanted, full+" "+d.Digest)
		}
	}
	if len(found) != len(wanted) {
		return fmt.Errorf("index.json lists %d entries where the refs make %d", len(found), len(wanted))
	}
	for n := range found {
		if found[n] != wanted[n] {
			return fmt.Errorf("index.json: entry %d is %q where %q is expected", n, found[n], wanted[n])
		}
	}
	return nil
}
