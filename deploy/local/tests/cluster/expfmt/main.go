// Reads metrics in Prometheus' text format from standard input with the parser that Go programs
// use, and prints the name, type and number of samples of each family.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sort"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Println("reads metrics from standard input")
		return
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bufio.NewReader(os.Stdin))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	names := make([]string, 0, len(families))
	for name := range families {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		family := families[name]
		fmt.Println(name, family.GetType(), len(family.GetMetric()))
	}
}
