package incoming

import (
	"fmt"
	"net/http"

	"github.com/limpet-auth/limpet/proof"
)

// Answer answers a request that is not handed on: JSON {"message","reason"},
// which no cache keeps.
func Answer(w http.ResponseWriter, code int, reason proof.Reason, message string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprintf(w, "{\"message\":%q,\"reason\":%q}\n", message, reason)
}
