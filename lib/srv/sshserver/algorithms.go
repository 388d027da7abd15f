package sshserver

import (
	"regexp"
	"slices"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"

	"github.com/accessd/accessd/lib/fault"
)

// Algorithms says what may be negotiated. The zero value is the default.
type Algorithms struct {
	// Ciphers in order of preference, for every client. nil means AES-GCM alone
	// on CPUs with AES instructions, chacha20-poly1305 before it on others, and
	// what the table of known clients adds.
	Ciphers []string
}

// What may be configured. CBC, RC4 and "none" are not in it.
var ciphers = []string{ //nolint:gochecknoglobals // a constant table
	ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305,
	ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR,
}

// check returns a with its default filled in.
func (a Algorithms) check() (Algorithms, error) {
	for _, c := range a.Ciphers {
		if !slices.Contains(ciphers, c) {
			return a, fault.New(fault.BadInput, "cipher %.80q: want some of %q", c, ciphers)
		}
	}
	return a, nil
}

// gcm are the ciphers of all but a few clients. AES-128 comes first: it is the
// faster, and no attack on it is in sight.
func gcm() []string { return []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM} }

// hasAES reports whether the CPU computes AES-GCM itself: 5.7 GB/s against the
// 0.5 GB/s of chacha20-poly1305 on amd64.
func hasAES() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAESGCM
}

func defaultCiphers(aes bool) []string {
	if aes {
		return gcm()
	}
	return append([]string{ssh.CipherChaCha20Poly1305}, gcm()...)
}

// config returns what is negotiated with a client of the given identification.
func (a Algorithms) config(clientVersion string, aes bool) ssh.Config {
	cfg := ssh.Config{
		// curve25519-sha256@libssh.org comes with the name without a domain.
		KeyExchanges: []string{
			ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519,
			ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384,
		},
		Ciphers: a.Ciphers,
		MACs:    []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM},
	}
	known := lookUp(clientVersion)
	if len(cfg.Ciphers) == 0 {
		cfg.Ciphers = append(defaultCiphers(aes), known.ciphers...)
	}
	cfg.MACs = append(cfg.MACs, known.macs...)
	return cfg
}

// publicKeyAlgorithms are the signatures taken from clients; certificates go by
// the algorithm of their key. RSA with SHA-1 (ssh-rsa) and DSA are out.
func publicKeyAlgorithms() []string {
	return []string{
		ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
	}
}

// knownClient is a client that cannot do what all others are held to.
type knownClient struct {
	version *regexp.Regexp
	ciphers []string // added to the default
	macs    []string // added to the default
	reason  string
}

// knownClients is consulted by identification. An identification is only a
// claim: whoever makes a false one may choose among what is here, all of which
// is sound, and harms the speed of his own connection at most.
var knownClients = []knownClient{ //nolint:gochecknoglobals // a constant table
	{
		version: regexp.MustCompile(`^SSH-2\.0-dropbear`),
		ciphers: []string{ssh.CipherChaCha20Poly1305},
		reason:  "dropbear builds without GCM unless DROPBEAR_ENABLE_GCM_MODE is set",
	},
	{
		version: regexp.MustCompile(`^SSH-2\.0-(PuTTY_Release_0\.([1-6]\d|7[0-7])\b|WinSCP_release_[1-5]\.)`),
		ciphers: []string{ssh.CipherChaCha20Poly1305},
		reason:  "PuTTY has GCM from 0.78 on, and WinSCP with it from 6.0 on",
	},
	{
		version: regexp.MustCompile(`^SSH-2\.0-paramiko_([12]\.|3\.[0-4]\.)`),
		ciphers: []string{ssh.CipherAES256CTR, ssh.CipherAES192CTR, ssh.CipherAES128CTR},
		reason:  "paramiko has GCM from 3.5 on and no chacha20-poly1305; CTR goes with an encrypt-then-MAC",
	},
	{
		version: regexp.MustCompile(`^SSH-2\.0-libssh2_1\.([0-9]|10)\.`),
		ciphers: []string{ssh.CipherAES256CTR, ssh.CipherAES128CTR},
		macs:    []string{ssh.HMACSHA256, ssh.HMACSHA512},
		reason:  "libssh2 has GCM, chacha20-poly1305 and encrypt-then-MAC from 1.11 on; Debian 12's curl has 1.10",
	},
}

// lookUp returns what is known of a client, or the zero knownClient.
func lookUp(clientVersion string) knownClient {
	for _, k := range knownClients {
		if k.version.MatchString(clientVersion) {
			return k
		}
	}
	return knownClient{}
}

// hostKeys returns the signers to show: Ed25519, ECDSA, and RSA that signs with
// SHA-2 only.
func hostKeys(all []ssh.Signer) ([]ssh.Signer, error) {
	var out []ssh.Signer
	for _, k := range all {
		key := k.PublicKey()
		if cert, ok := key.(*ssh.Certificate); ok {
			key = cert.Key
		}
		switch key.Type() {
		case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		case ssh.KeyAlgoRSA:
			as, ok := k.(ssh.AlgorithmSigner)
			if !ok {
				return nil, fault.New(fault.BadInput, "the RSA host key cannot sign with SHA-2")
			}
			sha2, err := ssh.NewSignerWithAlgorithms(as, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256})
			if err != nil {
				return nil, fault.Wrap(fault.BadInput, err, "the RSA host key cannot sign with SHA-2")
			}
			k = sha2
		default:
			return nil, fault.New(fault.BadInput, "host keys of type %q are not taken", key.Type())
		}
		out = append(out, k)
	}
	return out, nil
}
