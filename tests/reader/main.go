// Command reader reads a copy repository in a directory, by docs/repository-format.md alone. It shares no code with
// the program that writes repositories, so that what both agree on is what the document says.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

const usage = `usage: reader check DIRECTORY --key FILE [--image UUID] [-o json]
       reader cat DIRECTORY --key FILE IMAGE COMPONENT STREAM

check reads every saved image, stream by stream, compares every digest, tag, hash and count, and prints a line for
each stream and container image. Ends with status 1 at the first thing that is not what it should be.
cat writes the bytes of one stream to standard output.
`

type arguments struct {
	words              []string
	key, image, output string
}

func parse(all []string) (arguments, error) {
	var a arguments
	flags := map[string]*string{"--key": &a.key, "--image": &a.image, "-o": &a.output}
	for i := 0; i < len(all); i++ {
		into, ok := flags[all[i]]
		switch {
		case !ok:
			a.words = append(a.words, all[i])
		case i+1 == len(all):
			return a, fmt.Errorf("%s needs a value", all[i])
		default:
			i++
			*into = all[i]
		}
	}
	if a.key == "" {
		return a, errors.New("--key FILE is missing")
	}
	return a, nil
}

func main() {
	a, err := parse(os.Args[1:])
	switch {
	case err == nil && len(a.words) == 2 && a.words[0] == "check":
		err = check(a)
	case err == nil && len(a.words) == 5 && a.words[0] == "cat":
		err = cat(a)
	default:
		fmt.Fprint(os.Stderr, usage)
		if err != nil {
			fmt.Fprintf(os.Stderr, "\nerror: %v\n", err)
		}
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

// line is what is printed of one stream or container image.
type line struct {
	Image     string `json:"image"`
	Component string `json:"component"`
	Kind      string `json:"kind"`
	Stream    string `json:"stream,omitempty"`
	Unit      string `json:"unit,omitempty"`
	Items     uint64 `json:"items"`
	Bytes     uint64 `json:"bytes"`
	Content   string `json:"content"`
}

func check(a arguments) error {
	repository, err := open(a.words[1], a.key)
	if err != nil {
		return err
	}
	images, err := repository.images()
	if err != nil {
		return err
	}
	var lines []line
	count := 0
	for _, ref := range images {
		if a.image != "" && ref.Image != a.image {
			continue
		}
		count++
		image, err := repository.image(ref)
		if err != nil {
			return fmt.Errorf("image %s: %w", ref.Image, err)
		}
		found, err := image.check()
		if err != nil {
			return fmt.Errorf("image %s: %w", ref.Image, err)
		}
		lines = append(lines, found...)
	}
	if a.image != "" && count == 0 {
		return fmt.Errorf("there is no image %s", a.image)
	}
	if err := repository.checkIndex(images); err != nil {
		return err
	}
	if a.output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		if lines == nil {
			lines = []line{}
		}
		return encoder.Encode(lines)
	}
	var bytes uint64
	for _, l := range lines {
		fmt.Printf("%s  %-24s %-12s %-40q %10d %-10s %14d  %.16s\n", l.Image, l.Component, l.Kind, l.Stream, l.Items, l.Unit, l.Bytes, l.Content)
		bytes += l.Bytes
	}
	fmt.Printf("reader: %d images, %d streams and container images, %d bytes: all as they should be\n", count, len(lines), bytes)
	return nil
}

func cat(a arguments) error {
	repository, err := open(a.words[1], a.key)
	if err != nil {
		return err
	}
	images, err := repository.images()
	if err != nil {
		return err
	}
	for _, ref := range images {
		if ref.Image != a.words[2] {
			continue
		}
		image, err := repository.image(ref)
		if err != nil {
			return err
		}
		for _, component := range image.record.Components {
			if component.Name != a.words[3] || component.Body.Data == nil {
				continue
			}
			data, err := image.data(component)
			if err != nil {
				return err
			}
			for _, stream := range data.streams {
				if string(stream.Name) == a.words[4] {
					return data.read(stream, os.Stdout)
				}
			}
		}
	}
	return errors.New("there is no such stream")
}
