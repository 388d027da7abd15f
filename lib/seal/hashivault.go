//go:build hashivault

package seal

import _ "gocloud.dev/secrets/hashivault" // hashivault://KEY, with VAULT_ADDR and VAULT_TOKEN
