package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Limits of §4.
const (
	longestPage  = 32 << 20
	longestRoot  = 96 << 20
	longestChunk = 8 << 20
	longestName  = 4096
	mostStreams  = 200_000
	mostPacks    = 200_000
	chunkRow     = 56
	packRow      = 48
	mostRows     = 1024
)

type root struct {
	Version int
	Kind    string
	Facts   string
	Bytes   uint64
	Pages   []uint64
	Chunks  []uint64
	Runs    []struct {
		Pages []uint64
		First []string
	}
	Packs, Streams []uint64
}

type stream struct {
	Name     []byte
	Bytes    uint64
	Unit     string
	Items    uint64
	ItemHash string `json:"item_hash"`
	Segments [][3]uint64
}

type pack struct {
	Digest string
	Size   uint64
	Key    string
	Chunks uint64
	Live   uint64

	key  key
	file *os.File
}

// data is an open data component.
type data struct {
	image   *image
	root    root
	starts  []uint64
	toc     []byte
	key     key
	packs   []*pack
	streams []stream
	chunk   key
	pages   map[uint64][]byte
	indexed map[[32]byte]bool
	zstd    *zstd.Decoder
}

func (i *image) data(c component) (*data, error) {
	m, err := i.r.manifest(c.Manifest)
	if err != nil {
		return nil, err
	}
	kind := c.Body.Data.Found.Kind
	if m.MediaType != manifestType || m.ArtifactType != "application/vnd.ocopea.data."+kind+".v1" || m.Config.MediaType != "application/vnd.ocopea.toc.v1" {
		return nil, errors.New("its manifest is not that of a data component of its kind")
	}
	if err := i.r.checkBlob(m.Config); err != nil {
		return nil, err
	}
	toc, err := i.r.blob(m.Config.Digest, 4<<30)
	if err != nil {
		return nil, err
	}
	d := &data{image: i, toc: toc, chunk: kdf("ocopea repository v1 chunk hash", i.hash[:]), pages: map[uint64][]byte{}}
	if err := d.openRoot(); err != nil {
		return nil, err
	}
	if d.root.Version != 1 || d.root.Kind != kind {
		return nil, errors.New("the table of contents is of another kind or of a newer version")
	}
	if err := d.openPacks(m); err != nil {
		return nil, err
	}
	if err := d.openRuns(); err != nil {
		return nil, err
	}
	if err := d.openStreams(); err != nil {
		return nil, err
	}
	d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(longestChunk))
	return d, err
}

func (d *data) close() {
	for _, p := range d.packs {
		if p.file != nil {
			_ = p.file.Close()
		}
	}
	if d.zstd != nil {
		d.zstd.Close()
	}
}

// openRoot reads a table of contents from its end (§4.4).
func (d *data) openRoot() error {
	toc := d.toc
	if len(toc) < 40+12 || string(toc[:8]) != "OCOPTOC1" || string(toc[len(toc)-8:]) != "OCOPTOCE" {
		return errors.New("it is no table of contents of a version that is known")
	}
	length := int(binary.LittleEndian.Uint32(toc[len(toc)-12:]))
	start := len(toc) - 12 - length
	if length > longestRoot || start < 40 {
		return errors.New("the root of the table of contents has no possible length")
	}
	d.key = objectKey(d.image.imageKey, toc[8:40])
	plain, err := decrypt(d.key, counter(1<<64-1), "ocopea/toc/v1/root", toc[start:len(toc)-12])
	if err != nil {
		return fmt.Errorf("the root of the table of contents: %w", err)
	}
	if err := json.Unmarshal(plain, &d.root); err != nil {
		return err
	}
	at := uint64(40)
	for _, page := range d.root.Pages {
		if page > longestPage {
			return errors.New("a page of the table of contents is too long")
		}
		d.starts = append(d.starts, at)
		at += page
	}
	if at != uint64(start) {
		return errors.New("the pages of the table of contents don't fill it")
	}
	return nil
}

func (d *data) page(number uint64, section string) ([]byte, error) {
	if number >= uint64(len(d.starts)) {
		return nil, fmt.Errorf("there is no page %d", number)
	}
	start, length := d.starts[number], d.root.Pages[number]
	plain, err := decrypt(d.key, counter(number), "ocopea/toc/v1/"+section, d.toc[start:start+length])
	if err != nil {
		return nil, fmt.Errorf("page %d (%s): %w", number, section, err)
	}
	return plain, nil
}

// openPacks reads the pack table and compares each pack with its own index.
func (d *data) openPacks(m *manifest) error {
	for _, number := range d.root.Packs {
		plain, err := d.page(number, "packs")
		if err != nil {
			return err
		}
		var rows []*pack
		if err := json.Unmarshal(plain, &rows); err != nil {
			return err
		}
		d.packs = append(d.packs, rows...)
		if len(d.packs) > mostPacks {
			return errors.New("too many packs")
		}
	}
	layers := m.Layers
	if len(d.packs) == 0 {
		if len(layers) != 1 || layers[0].Digest != emptyDigest {
			return errors.New("a component without packs has a layer")
		}
		return nil
	}
	if len(layers) != len(d.packs) {
		return fmt.Errorf("the manifest lists %d packs, the table %d", len(layers), len(d.packs))
	}
	for n, p := range d.packs {
		if layers[n].Digest != p.Digest || uint64(layers[n].Size) != p.Size || layers[n].MediaType != "application/vnd.ocopea.pack.v1" {
			return fmt.Errorf("pack %d of the manifest is not that of the table", n)
		}
		raw, err := hex.DecodeString(p.Key)
		if err != nil || len(raw) != 32 {
			return fmt.Errorf("pack %s has no key", p.Digest)
		}
		p.key = key(raw)
		if err := d.image.r.checkBlob(layers[n]); err != nil {
			return err
		}
		path, err := d.image.r.blobPath(p.Digest)
		if err != nil {
			return err
		}
		if p.file, err = os.Open(path); err != nil {
			return err
		}
		if err := d.checkPack(p); err != nil {
			return fmt.Errorf("pack %s: %w", p.Digest, err)
		}
	}
	return nil
}

// checkPack opens a pack's own index (§4.2) with the key from the table.
func (d *data) checkPack(p *pack) error {
	if p.Size < 8+60+12+8 || p.Size > 1<<32-1 {
		return errors.New("it has no possible size")
	}
	head, tail := make([]byte, 8), make([]byte, 80)
	if _, err := p.file.ReadAt(head, 0); err != nil {
		return err
	}
	if _, err := p.file.ReadAt(tail, int64(p.Size)-80); err != nil {
		return err
	}
	if string(head) != "OCOPPAK1" || string(tail[72:]) != "OCOPEND1" {
		return errors.New("it is no pack of a version that is known")
	}
	offset, length := binary.LittleEndian.Uint32(tail[60:]), binary.LittleEndian.Uint32(tail[64:])
	count := binary.LittleEndian.Uint32(tail[68:])
	if uint64(offset)+uint64(length)+80 != p.Size || uint64(count) != p.Chunks || uint64(count)*packRow+16 != uint64(length) {
		return errors.New("its numbers don't fit")
	}
	sealed := make([]byte, length)
	if _, err := p.file.ReadAt(sealed, int64(offset)); err != nil {
		return err
	}
	rows, err := decrypt(p.key, counter(1<<64-1), "ocopea/pack-index/v1", sealed)
	if err != nil {
		return fmt.Errorf("its index: %w", err)
	}
	at := uint32(8)
	for n := 0; n < len(rows); n += packRow {
		start, stored := binary.LittleEndian.Uint32(rows[n+32:]), binary.LittleEndian.Uint32(rows[n+36:])
		if start != at {
			return errors.New("its chunks don't lie back to back")
		}
		at += stored
	}
	if at != offset {
		return errors.New("its chunks don't end where its index begins")
	}
	// Packs of this image's own writing open with this image's key, too.
	wrapping := kdf("ocopea repository v1 pack key wrap", d.image.imageKey[:])
	if own, err := unwrap(wrapping, "ocopea/pack-key/v1", tail[:60]); err == nil && !bytes.Equal(own, p.key[:]) {
		return errors.New("its own wrap holds another key")
	}
	return nil
}

// openRuns reads the sorted lists of all chunks, which later saves look chunks up in.
func (d *data) openRuns() error {
	d.indexed = map[[32]byte]bool{}
	for n, run := range d.root.Runs {
		if len(run.Pages) != len(run.First) {
			return fmt.Errorf("run %d has %d pages and %d first hashes", n, len(run.Pages), len(run.First))
		}
		var last []byte
		for p, number := range run.Pages {
			rows, err := d.page(number, "index")
			if err != nil {
				return err
			}
			if len(rows) == 0 || len(rows)%chunkRow != 0 || len(rows) > mostRows*chunkRow {
				return errors.New("an index page has no possible length")
			}
			if hex.EncodeToString(rows[:32]) != run.First[p] {
				return fmt.Errorf("page %d of run %d begins with another hash than the root says", p, n)
			}
			for at := 0; at < len(rows); at += chunkRow {
				hash := rows[at : at+32]
				if bytes.Compare(last, hash) >= 0 {
					return fmt.Errorf("run %d is not sorted", n)
				}
				last = hash
				d.indexed[[32]byte(hash)] = true
			}
		}
	}
	return nil
}

func (d *data) openStreams() error {
	last := ""
	var total uint64
	for _, number := range d.root.Streams {
		plain, err := d.page(number, "streams")
		if err != nil {
			return err
		}
		var rows []stream
		if err := json.Unmarshal(plain, &rows); err != nil {
			return err
		}
		for _, row := range rows {
			if (len(d.streams) > 0 && string(row.Name) <= last) || len(row.Name) > longestName {
				return fmt.Errorf("stream %.100q does not come in order", row.Name)
			}
			last = string(row.Name)
			total += row.Bytes
			d.streams = append(d.streams, row)
		}
		if len(d.streams) > mostStreams {
			return errors.New("too many streams")
		}
	}
	if total != d.root.Bytes {
		return fmt.Errorf("its streams have %d bytes together where %d are announced", total, d.root.Bytes)
	}
	return nil
}

// read writes a stream's bytes to `to`, every chunk checked before.
func (d *data) read(s stream, to io.Writer) error {
	var written uint64
	for _, segment := range s.Segments {
		place, first, count := segment[0], segment[1], segment[2]
		if place >= uint64(len(d.root.Chunks)) {
			return fmt.Errorf("there is no chunk page %d", place)
		}
		number := d.root.Chunks[place]
		rows, ok := d.pages[number]
		if !ok {
			var err error
			if rows, err = d.page(number, "chunks"); err != nil {
				return err
			}
			if len(rows)%chunkRow != 0 || len(rows) > mostRows*chunkRow {
				return errors.New("a chunk page has no possible length")
			}
			d.pages = map[uint64][]byte{number: rows}
		}
		if first+count < first || (first+count)*chunkRow > uint64(len(rows)) {
			return errors.New("a segment goes beyond its page")
		}
		for n := first; n < first+count; n++ {
			if !d.indexed[[32]byte(rows[n*chunkRow:n*chunkRow+32])] {
				return errors.New("a chunk is in no run")
			}
			raw, err := d.chunkAt(rows[n*chunkRow : (n+1)*chunkRow])
			if err != nil {
				return err
			}
			written += uint64(len(raw))
			if _, err := to.Write(raw); err != nil {
				return err
			}
		}
	}
	if written != s.Bytes {
		return fmt.Errorf("stream %.100q has %d bytes where %d are announced", s.Name, written, s.Bytes)
	}
	return nil
}

func (d *data) chunkAt(row []byte) ([]byte, error) {
	number := binary.LittleEndian.Uint32(row[32:])
	if number >= uint32(len(d.packs)) {
		return nil, fmt.Errorf("there is no pack %d", number)
	}
	p := d.packs[number]
	inPack, offset := binary.LittleEndian.Uint32(row[36:]), binary.LittleEndian.Uint32(row[40:])
	stored, length := binary.LittleEndian.Uint32(row[44:]), binary.LittleEndian.Uint32(row[48:])
	flags := binary.LittleEndian.Uint32(row[52:])
	if length == 0 || length > longestChunk || stored > longestChunk+longestChunk/8 || uint64(offset)+uint64(stored) > p.Size {
		return nil, errors.New("a chunk has no possible length or place")
	}
	sealed := make([]byte, stored)
	if _, err := p.file.ReadAt(sealed, int64(offset)); err != nil {
		return nil, err
	}
	plain, err := decrypt(p.key, counter(uint64(inPack)), "ocopea/chunk/v1", sealed)
	if err != nil {
		return nil, fmt.Errorf("chunk %d of pack %s: %w", inPack, p.Digest, err)
	}
	switch flags {
	case 0:
	case 1:
		if plain, err = d.zstd.DecodeAll(plain, make([]byte, 0, length)); err != nil {
			return nil, fmt.Errorf("chunk %d of pack %s: %w", inPack, p.Digest, err)
		}
	default:
		return nil, fmt.Errorf("chunk %d of pack %s has unknown flags %d", inPack, p.Digest, flags)
	}
	if uint32(len(plain)) != length {
		return nil, fmt.Errorf("chunk %d of pack %s has another length than announced", inPack, p.Digest)
	}
	if hash := keyed(d.chunk, plain); !bytes.Equal(hash[:], row[:32]) {
		return nil, fmt.Errorf("chunk %d of pack %s has another hash than announced", inPack, p.Digest)
	}
	return plain, nil
}

// checkData reads every stream of a component and compares it with the record.
func (i *image) checkData(c component) ([]line, error) {
	d, err := i.data(c)
	if err != nil {
		return nil, err
	}
	defer d.close()
	if d.root.Bytes != c.Bytes {
		return nil, fmt.Errorf("it has %d bytes where the record has %d", d.root.Bytes, c.Bytes)
	}
	kind := c.Body.Data.Found.Kind
	var lines []line
	told := map[string]streamInfo{}
	for _, s := range c.Body.Data.Streams {
		told[s.Name] = s
	}
	for _, s := range d.streams {
		items := newItems(kind, i.hash, string(s.Name), s.Unit)
		if err := d.read(s, items); err != nil {
			return nil, err
		}
		if err := items.finish(s); err != nil {
			return nil, fmt.Errorf("stream %q: %w", s.Name, err)
		}
		if info, ok := told[string(s.Name)]; ok && info.Content != s.ItemHash {
			return nil, fmt.Errorf("stream %q: the record has another content hash", s.Name)
		}
		name := string(s.Name)
		lines = append(lines, line{Image: i.ref.Image, Component: c.Name, Kind: kind, Stream: strings.ToValidUTF8(name, "\uFFFD"), Unit: s.Unit, Items: s.Items, Bytes: s.Bytes, Content: s.ItemHash})
	}
	return lines, nil
}
