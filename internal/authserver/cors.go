package authserver

import (
	"net/http"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet/proof/dpop"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// Headers for browser clients on another origin. Any origin may ask: browsers do
// not let it use the server's cookies, if there are any, so a page can use only tokens
// and keys that it has.
var (
	corsMethods = "GET, HEAD, POST, PUT, PATCH, DELETE"
	corsRequest = strings.Join(slices.Concat([]string{"Authorization", "Content-Type"}, []string{
		"Signature", "Signature-Input", httpsig.DigestField, httpsig.DeviceField, httpsig.DelegationField,
		httpsig.SessionField, httpsig.ChallengeField, httpsig.ChannelField,
		dpop.Header,
	}, hwsign.BoundToken.All(), hwsign.DBCS.All()), ", ")
	corsResponse = strings.Join(slices.Concat([]string{"WWW-Authenticate", "Retry-After", httpsig.KeyField, httpsig.ChallengeField, dpop.NonceHeader},
		answers(hwsign.BoundToken, hwsign.DBCS)), ", ")
)

// answers returns the names of the headers that an answer to hw-sign can have.
func answers(spellings ...hwsign.Names) (names []string) {
	for _, n := range spellings {
		names = append(names, n.EphemeralKey, n.EphemeralID, n.EphemeralExpire)
	}
	return names
}

// cors sets the headers of the Fetch standard's CORS protocol and reports
// whether the request was a preflight, which is then answered.
func cors(w http.ResponseWriter, r *http.Request) (done bool) {
	if len(r.Header["Origin"]) == 0 {
		return false
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	if r.Method != http.MethodOptions || len(r.Header["Access-Control-Request-Method"]) == 0 {
		h.Set("Access-Control-Expose-Headers", corsResponse)
		return false
	}
	h.Set("Access-Control-Allow-Methods", corsMethods)
	h.Set("Access-Control-Allow-Headers", corsRequest)
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
