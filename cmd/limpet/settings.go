package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// Settings are the flags that keep their value from one call to the next. Each
// can also be given by an environment variable and in the settings file, under
// the flag's name.

const setting = "limpet-setting" // annotates a flag that is one

// settings makes flags of cmd settings.
func settings(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.Flags().SetAnnotation(name, setting, nil); err != nil {
			panic(err) // no such flag
		}
	}
}

func isSetting(f *pflag.Flag) bool { _, ok := f.Annotations[setting]; return ok }

func envName(flag string) string {
	return "LIMPET_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// settle gives every setting of cmd that was not set by a flag its value from
// the environment, or else from the settings file. A command without settings
// does not read the file.
func settle(cmd *cobra.Command) error {
	needed := false
	cmd.Flags().VisitAll(func(f *pflag.Flag) { needed = needed || isSetting(f) })
	if !needed {
		return nil
	}
	file, err := readSettings(cmd)
	if err != nil {
		return err
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if err != nil || f.Changed || !isSetting(f) {
			return
		}
		if v, ok := os.LookupEnv(envName(f.Name)); ok {
			if err = cmd.Flags().Set(f.Name, v); err != nil {
				err = usage("%s: %w", envName(f.Name), errors.Unwrap(err))
			}
			return
		}
		if v, ok := file.values[f.Name]; ok {
			if err = cmd.Flags().Set(f.Name, v.Value); err != nil {
				err = usage("%s:%d: %s: %w", file.path, v.Line, f.Name, errors.Unwrap(err))
			}
		}
	})
	return err
}

// settingsFile is a YAML mapping from flag names to values.
type settingsFile struct {
	path   string
	values map[string]*yaml.Node
}

const maxSettings = 64 << 10 // bytes of a settings file

func readSettings(cmd *cobra.Command) (*settingsFile, error) {
	path, named := cmd.Flag("config").Value.String(), true
	if path == "" {
		path = os.Getenv(envName("config"))
	}
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return &settingsFile{}, nil // no home, no file
		}
		path, named = filepath.Join(dir, "limpet", "config.yaml"), false
	}
	text, err := readBounded(path, maxSettings)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return &settingsFile{}, nil
	}
	if err != nil {
		return nil, usage("settings file: %w", err)
	}
	known := make(map[string]bool)
	for _, c := range allCommands(cmd.Root()) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if isSetting(f) {
				known[f.Name] = true
			}
		})
	}
	values, err := parseSettings(path, text, known)
	return &settingsFile{path, values}, err
}

// parseSettings reads a YAML mapping of known names to plain values.
func parseSettings(path string, text []byte, known map[string]bool) (map[string]*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, usage("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	values := make(map[string]*yaml.Node)
	if len(doc.Content) == 0 { // an empty file
		return values, nil
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return nil, usage("%s:%d: want lines of the form name: value", path, doc.Content[0].Line)
	}
	for pairs := doc.Content[0].Content; len(pairs) > 0; pairs = pairs[2:] {
		name, value := pairs[0], pairs[1]
		switch {
		case !known[name.Value]:
			return nil, usage("%s:%d: unknown field %.64q", path, name.Line, name.Value)
		case values[name.Value] != nil:
			return nil, usage("%s:%d: %s is set twice", path, name.Line, name.Value)
		case value.Kind != yaml.ScalarNode:
			return nil, usage("%s:%d: %s must be a plain value", path, value.Line, name.Value)
		}
		values[name.Value] = value
	}
	return values, nil
}

func allCommands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, allCommands(sub)...)
	}
	return all
}

// readBounded reads a regular file, or "-" for standard input, of at most max
// bytes.
func readBounded(path string, max int64) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("%s has more than %d bytes", path, max)
	}
	return b, nil
}
