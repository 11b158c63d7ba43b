// helm_render CHART [VALUES.yaml...]: renders a chart's templates as Helm does, for charts that use
// no more of Helm than this: Go's templates, sprig's functions, include, toYaml, required, .Values,
// .Chart and .Release. Later values files win, key by key. There is no Helm in Debian 12.
//
// The release is called "test" in the namespace "default". Built without modules, on Debian's
// golang-github-masterminds-sprig-dev: GO111MODULE=off GOPATH=/usr/share/gocode go run .
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "helm_render:", err)
		os.Exit(1)
	}
}

func readYaml(path string) map[string]interface{} {
	text, err := os.ReadFile(path)
	check(err)
	values := map[string]interface{}{}
	check(yaml.Unmarshal(text, &values))
	return values
}

func merge(into, from map[string]interface{}) {
	for key, value := range from {
		below, isMap := value.(map[string]interface{})
		old, wasMap := into[key].(map[string]interface{})
		if isMap && wasMap {
			merge(old, below)
		} else {
			into[key] = value
		}
	}
}

func main() {
	if len(os.Args) < 2 {
		check(fmt.Errorf("expected CHART [VALUES.yaml...]"))
	}
	chart := os.Args[1]
	values := readYaml(filepath.Join(chart, "values.yaml"))
	for _, path := range os.Args[2:] {
		merge(values, readYaml(path))
	}
	about := readYaml(filepath.Join(chart, "Chart.yaml"))
	data := map[string]interface{}{
		"Values":  values,
		"Chart":   map[string]interface{}{"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
		"Release": map[string]interface{}{"Name": "test", "Namespace": "default", "Service": "Helm"},
	}

	all := template.New("chart").Option("missingkey=error")
	functions := sprig.TxtFuncMap()
	// As in Helm: a chart renders the same wherever it is rendered.
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["include"] = func(name string, data interface{}) (string, error) {
		var out strings.Builder
		err := all.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	functions["toYaml"] = func(value interface{}) (string, error) {
		out, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(out), "\n"), err
	}
	functions["required"] = func(message string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return nil, fmt.Errorf("%s", message)
		}
		return value, nil
	}
	all.Funcs(functions)
	paths, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	check(err)
	sort.Strings(paths)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		check(err)
		_, err = all.New(filepath.Base(path)).Parse(string(text))
		check(err)
	}
	for _, path := range paths {
		name := filepath.Base(path)
		var out strings.Builder
		if filepath.Ext(name) == ".yaml" {
			check(all.ExecuteTemplate(&out, name, data))
			fmt.Printf("---\n# %s\n%s\n", name, out.String())
		} else if name == "NOTES.txt" {
			check(all.ExecuteTemplate(&out, name, data))
			fmt.Fprint(os.Stderr, out.String())
		}
	}
}
