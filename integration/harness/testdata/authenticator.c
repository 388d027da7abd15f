/*
 * A middleware for security keys (OpenSSH's sk-api.h) that hands everything to
 * whoever listens on SOCKET: the test, which has the keys. Numbers are big-endian.
 *
 *   request:  op, u32 algorithm, flags, 4 blobs (data, application, handle, PIN)
 *   answer:   i32 status, flags, u32 counter, 5 blobs
 *
 * A blob is its length as u32, and its bytes.
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ERR_GENERAL -1
#define ERR_UNSUPPORTED -2

struct sk_option;
struct sk_resident_key;

struct sk_enroll_response {
	uint8_t flags;
	uint8_t *public_key;
	size_t public_key_len;
	uint8_t *key_handle;
	size_t key_handle_len;
	uint8_t *signature;
	size_t signature_len;
	uint8_t *attestation_cert;
	size_t attestation_cert_len;
	uint8_t *authdata;
	size_t authdata_len;
};

struct sk_sign_response {
	uint8_t flags;
	uint32_t counter;
	uint8_t *sig_r;
	size_t sig_r_len;
	uint8_t *sig_s;
	size_t sig_s_len;
};

struct blob {
	uint8_t *data;
	size_t len;
};

struct answer {
	uint8_t flags;
	uint32_t counter;
	struct blob blobs[5];
};

static int put(int fd, const void *p, size_t n)
{
	const uint8_t *at = p;
	while (n > 0) {
		ssize_t w = write(fd, at, n);
		if (w <= 0)
			return -1;
		at += w, n -= w;
	}
	return 0;
}

static int take(int fd, void *p, size_t n)
{
	uint8_t *at = p;
	while (n > 0) {
		ssize_t r = read(fd, at, n);
		if (r <= 0)
			return -1;
		at += r, n -= r;
	}
	return 0;
}

static int put32(int fd, uint32_t v)
{
	v = htonl(v);
	return put(fd, &v, sizeof v);
}

static int take32(int fd, uint32_t *v)
{
	if (take(fd, v, sizeof *v))
		return -1;
	*v = ntohl(*v);
	return 0;
}

static int take_blob(int fd, struct blob *b)
{
	uint32_t n;
	if (take32(fd, &n) || n > 65536 || (b->data = malloc(n + 1)) == NULL)
		return -1;
	b->len = n;
	return take(fd, b->data, n);
}

static int ask(char op, uint32_t alg, uint8_t flags, const struct blob in[4], struct answer *out)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX, .sun_path = SOCKET};
	uint32_t status = ERR_GENERAL;
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), failed;
	if (fd < 0)
		return ERR_GENERAL;
	failed = connect(fd, (struct sockaddr *)&addr, sizeof addr) || put(fd, &op, 1) || put32(fd, alg) || put(fd, &flags, 1);
	for (int i = 0; i < 4 && !failed; i++)
		failed = put32(fd, in[i].len) || put(fd, in[i].data, in[i].len);
	failed = failed || take32(fd, &status);
	if (!failed && status == 0) {
		failed = take(fd, &out->flags, 1) || take32(fd, &out->counter);
		for (int i = 0; i < 5 && !failed; i++)
			failed = take_blob(fd, &out->blobs[i]);
	}
	close(fd);
	return failed ? ERR_GENERAL : (int)status;
}

static struct blob text(const char *s)
{
	return (struct blob){(uint8_t *)s, s == NULL ? 0 : strlen(s)};
}

uint32_t sk_api_version(void) { return VERSION; }

int sk_enroll(uint32_t alg, const uint8_t *challenge, size_t challenge_len, const char *application, uint8_t flags,
	const char *pin, struct sk_option **options, struct sk_enroll_response **response)
{
	struct blob in[4] = {{(uint8_t *)challenge, challenge_len}, text(application), {NULL, 0}, text(pin)};
	struct answer a = {0};
	struct sk_enroll_response *r;
	int status = ask('e', alg, flags, in, &a);
	(void)options;
	if (status != 0)
		return status;
	if ((r = calloc(1, sizeof *r)) == NULL)
		return ERR_GENERAL;
	r->flags = a.flags;
	r->public_key = a.blobs[0].data, r->public_key_len = a.blobs[0].len;
	r->key_handle = a.blobs[1].data, r->key_handle_len = a.blobs[1].len;
	r->signature = a.blobs[2].data, r->signature_len = a.blobs[2].len;
	r->attestation_cert = a.blobs[3].data, r->attestation_cert_len = a.blobs[3].len;
	r->authdata = a.blobs[4].data, r->authdata_len = a.blobs[4].len;
	*response = r;
	return 0;
}

int sk_sign(uint32_t alg, const uint8_t *data, size_t data_len, const char *application, const uint8_t *key_handle,
	size_t key_handle_len, uint8_t flags, const char *pin, struct sk_option **options, struct sk_sign_response **response)
{
	struct blob in[4] = {{(uint8_t *)data, data_len}, text(application), {(uint8_t *)key_handle, key_handle_len}, text(pin)};
	struct answer a = {0};
	struct sk_sign_response *r;
	int status = ask('s', alg, flags, in, &a);
	(void)options;
	if (status != 0)
		return status;
	if ((r = calloc(1, sizeof *r)) == NULL)
		return ERR_GENERAL;
	r->flags = a.flags, r->counter = a.counter;
	r->sig_r = a.blobs[0].data, r->sig_r_len = a.blobs[0].len;
	if (a.blobs[1].len > 0)
		r->sig_s = a.blobs[1].data, r->sig_s_len = a.blobs[1].len;
	*response = r;
	return 0;
}

int sk_load_resident_keys(const char *pin, struct sk_option **options, struct sk_resident_key ***keys, size_t *n)
{
	(void)pin, (void)options, (void)keys, (void)n;
	return ERR_UNSUPPORTED;
}
