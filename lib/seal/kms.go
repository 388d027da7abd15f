package seal

// The key management services whose URLs work without a build of one's own.
// Each driver reads its credentials from the environment, as its vendor
// documents.
import (
	_ "gocloud.dev/secrets/awskms"     // awskms://KEY?region=R
	_ "gocloud.dev/secrets/hashivault" // hashivault://KEY, with VAULT_ADDR and VAULT_TOKEN
)
