// Package fido is a FIDO2 and U2F security token in software: CTAP 2.1 and CTAP1
// (FIDO Alliance, Client to Authenticator Protocol, Proposed Standard of 2021-06-15;
// U2F Raw Message Formats 1.2), with keys that a [Vault] keeps.
//
// A [Token] answers messages. Package ctaphid brings them from hosts, and a
// [Prompt] asks the user.
package fido
