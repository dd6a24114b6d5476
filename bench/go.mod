module github.com/limpet-auth/limpet/bench

go 1.26.0

require github.com/limpet-auth/limpet v0.0.0

require github.com/maypok86/otter/v2 v2.4.0 // indirect

replace github.com/limpet-auth/limpet => ../
