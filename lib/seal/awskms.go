//go:build awskms

package seal

import _ "gocloud.dev/secrets/awskms" // awskms://KEY?region=R
