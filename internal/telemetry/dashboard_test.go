package telemetry

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/limpet-auth/limpet"
)

// The dashboard asks for metrics that are there, by labels that they have, with
// values that these take; and it shows all of ours.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../docs/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		UID, Title    string
		SchemaVersion int
		Templating    struct {
			List []struct{ Name, Definition string }
		}
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	if board.UID == "" || board.Title == "" || board.SchemaVersion == 0 || len(board.Panels) == 0 {
		t.Fatalf("not a dashboard: %+v", board)
	}
	m := NewMetrics("v1")
	m.Decided(context.Background(), &limpet.Decision{Result: limpet.Admitted, Format: limpet.RFC9421, Took: time.Microsecond})
	families := scrape(t, m)

	var queries []string
	for _, v := range board.Templating.List {
		queries = append(queries, v.Definition)
	}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.GridPos.W <= 0 || p.GridPos.X+p.GridPos.W > 24 || len(p.Targets) == 0 {
			t.Errorf("panel %q: %+v", p.Title, p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			queries = append(queries, target.Expr)
		}
	}
	words := map[string][]string{"result": texts(results), "reason": texts(reasons), "format": texts(formats), "operation": operations, "event": texts(events), "cause": causes}
	shown := map[string]bool{}
	for _, query := range queries {
		for _, name := range regexp.MustCompile(`\b(limpet|go|process)_\w+`).FindAllString(query, -1) {
			family := families[name]
			if family == nil {
				family = families[strings.TrimSuffix(name, "_bucket")]
			}
			if family == nil {
				t.Errorf("%s asks for %s, which is not there", query, name)
				continue
			}
			shown[family.GetName()] = true
			by := regexp.MustCompile(`by \((\w+)\)`).FindStringSubmatch(query)
			if by != nil && by[1] != "le" && !hasLabel(family, by[1]) {
				t.Errorf("%s asks for the label %s, which %s has not", query, by[1], name)
			}
		}
		for _, match := range regexp.MustCompile(`(\w+)(?:=|!=|=~|!~)"([^"$]*)"`).FindAllStringSubmatch(query, -1) {
			for word := range strings.SplitSeq(match[2], "|") {
				if !slices.Contains(words[match[1]], word) {
					t.Errorf("%s: %s is never %q", query, match[1], word)
				}
			}
		}
	}
	for name := range families {
		if strings.HasPrefix(name, "limpet_") && !shown[name] {
			t.Errorf("%s is not shown", name)
		}
	}
}

func hasLabel(family *dto.MetricFamily, name string) bool {
	return slices.ContainsFunc(family.Metric[0].Label, func(l *dto.LabelPair) bool { return l.GetName() == name })
}

func texts[T ~string](values []T) (all []string) {
	for _, v := range values {
		all = append(all, string(v))
	}
	return all
}
