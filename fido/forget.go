package fido

import "time"

// Appear says that hosts can reach the token now. The first time begins the ten
// seconds in which they may reset it: CTAP 2.1, section 6.6. A token that appears
// again, for another user, is not one that was started again: programs can change
// whose session is active, and would have as many resets and tries of the PIN as they
// like.
func (t *Token) Appear() {
	now := time.Now()
	t.appeared.CompareAndSwap(nil, &now)
}

// Forget ends what hosts have begun, for another user to go on: what the PIN has
// opened, lists that are being read, large blobs that are being written, questions
// about U2F requests. What is being answered is answered first: hosts, of which none
// may be left, are cut off before.
func (t *Token) Forget() {
	t.turn <- struct{}{}
	defer t.end()
	t.endSession()
	t.letGo()
	t.rps, t.creds, t.blob = nil, nil, nil
	if t.u2f != nil {
		t.u2f.lapse.Reset(0) // takes the question back
		t.u2f = nil
	}
	t.newAgreement(1)
	t.newAgreement(2)
}
