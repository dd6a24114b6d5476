// Command image writes the container image: the binary, the roots that it trusts
// for HTTPS, and nothing else. It needs neither a daemon nor a base image, and the
// same inputs give the same bytes. The archive is an OCI layout that docker load
// and podman load take too.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const (
	nobody = 65532 // user and group: not root, and no name is needed
	state  = "/var/lib/limpet"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("image: ")
	arch := flag.String("arch", "amd64", "`architecture` of the binary")
	version := flag.String("version", "", "version of the binary")
	binary := flag.String("binary", "", "the `file` that runs")
	licences := flag.String("licences", "", "`file` with the licences of what is in it")
	out := flag.String("out", "", "`file` to write")
	flag.Parse()
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		log.Fatal("SOURCE_DATE_EPOCH is not set")
	}
	if err := write(*out, *arch, *version, *binary, *licences, time.Unix(seconds, 0).UTC()); err != nil {
		log.Fatal(err)
	}
}

func write(out, arch, version, binary, licences string, at time.Time) error {
	files, err := layer(binary, licences, at)
	if err != nil {
		return err
	}
	content, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: content, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: "make packages"}})
	if err != nil {
		return err
	}
	made, err := img.ConfigFile()
	if err != nil {
		return err
	}
	made = made.DeepCopy()
	made.OS, made.Architecture, made.Created, made.Config = "linux", arch, v1.Time{Time: at}, config(version)
	if img, err = mutate.ConfigFile(img, made); err != nil {
		return err
	}
	return archive(out, arch, img, "localhost/limpet:"+strings.ReplaceAll(version, "+", "."), at)
}

// config is what the image is run with.
func config(version string) v1.Config {
	return v1.Config{
		User:         fmt.Sprintf("%d:%d", nobody, nobody),
		Entrypoint:   []string{"/usr/bin/limpet"},
		Cmd:          []string{"gateway"},
		WorkingDir:   "/",
		Env:          []string{"LIMPET_LISTEN=:8443", "LIMPET_STORE=bolt:" + state + "/gateway.db"},
		ExposedPorts: map[string]struct{}{"8443/tcp": {}},
		Volumes:      map[string]struct{}{state: {}},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "limpet",
			"org.opencontainers.image.version":  version,
			"org.opencontainers.image.source":   "https://github.com/limpet-auth/limpet",
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
}

// layer is the image's file system, as a tar archive.
func layer(binary, licences string, at time.Time) ([]byte, error) {
	limpet, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	notices, err := os.ReadFile(licences)
	if err != nil {
		return nil, err
	}
	roots, err := roots()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	seen := map[string]bool{"/": true, ".": true}
	var failed error
	var dir func(name string, mode int64, owner int)
	dir = func(name string, mode int64, owner int) {
		if seen[name] {
			return
		}
		seen[name] = true
		dir(path.Dir(name), 0o755, 0)
		failed = errors.Join(failed, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name[1:] + "/", Mode: mode, Uid: owner, Gid: owner, ModTime: at}))
	}
	file := func(name string, mode int64, data []byte) {
		dir(path.Dir(name), 0o755, 0)
		failed = errors.Join(failed, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: mode, Size: int64(len(data)), ModTime: at}))
		_, err := w.Write(data)
		failed = errors.Join(failed, err)
	}
	file("/usr/bin/limpet", 0o755, limpet)
	file("/usr/share/doc/limpet/licences.txt", 0o644, notices)
	file("/etc/ssl/certs/ca-certificates.crt", 0o644, roots)
	dir(state, 0o700, nobody)
	return buf.Bytes(), errors.Join(failed, w.Close())
}

// roots are the certificates that browsers trust, as Go's maintainers keep them;
// without those that are to be trusted for some names or times only, which a file
// of certificates cannot say.
func roots() ([]byte, error) {
	var text []byte
	n := 0
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})...)
		n++
	}
	if n < 50 {
		return nil, fmt.Errorf("only %d roots", n)
	}
	return text, nil
}

// archive writes an image as an OCI layout in a tar archive, with the manifest
// beside it that docker load looks for.
func archive(out, arch string, img v1.Image, tag string, at time.Time) error {
	dir, err := os.MkdirTemp("", "image-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	name := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})
	if err := l.AppendImage(img, name, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch})); err != nil {
		return err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	docker := entry{Config: blob(manifest.Config.Digest), RepoTags: []string{tag}}
	for _, l := range manifest.Layers {
		docker.Layers = append(docker.Layers, blob(l.Digest))
	}
	text, err := json.Marshal([]entry{docker})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), text, 0o644); err != nil {
		return err
	}
	return pack(out, dir, at)
}

func blob(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// pack writes the files below a directory to a tar archive.
func pack(out, dir string, at time.Time) error {
	var names []string
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(rel), Mode: 0o644, Size: int64(len(data)), ModTime: at}); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), f.Close())
}
