#include "check.h"

#include "blake3.h"

#define LONGEST (140u << 10)

static uint8_t data[LONGEST];

/* As the published test vectors are made: the bytes 0 to 250, again and again. */
static void fill(void)
{
	for (unsigned i = 0; i < LONGEST; i++)
		data[i] = (uint8_t)(i % 251);
}

static const struct {
	unsigned bytes;
	const char *digest;
} published[] = {
	{0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
	{1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"},
	{63, "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b"},
	{64, "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98"},
	{65, "de1e5fa0be70df6d2be8fffd0e99ceaa8eb6e8c93a63f2d8d1c30ecb6b263dee"},
	{1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"},
	{1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"},
	{1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"},
	{2048, "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a"},
	{2049, "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030"},
	{3072, "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2"},
	{3073, "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3"},
	{4096, "015094013f57a5277b59d8475c0501042c0b642e531b0a1c8f58d2163229e969"},
	{5121, "628bd2cb2004694adaab7bbd778a25df25c47b9d4155a55f8fbd79f2fe154cff"},
	{8192, "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63"},
	{16384, "f875d6646de28985646f34ee13be9a576fd515f76b5b0a26bb324735041ddde4"},
	{31744, "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47"},
	{65536, "68d647e619a930e7b1082f74f334b0c65a315725569bdc123f0ee11881717bfe"},
	{65537, "7c99f9840a73dfcb6e5bfe4ff6d1558acab7e015640790c26411818bdbe17eca"},
	{102400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"},
	{131072, "306baba93b1a393cbd35172837c98b0f59a41f64e1b2682ae102d8b2534b9e1c"},
	{131073, "f837d4254d24ba3d50fe3743d46e4af6db5f5d6ab0469197d94e7ba1e906c4d8"},
};

static const char *hexadecimal(const uint8_t *digest)
{
	static char text[2 * LR_BLAKE3_BYTES + 1];

	for (unsigned i = 0; i < LR_BLAKE3_BYTES; i++)
		snprintf(text + (size_t)2 * i, 3, "%02x", digest[i]);
	return text;
}

static void gives_the_published_values_with_every_way(void)
{
	unsigned lanes[LR_BLAKE3_WAYS_MAX];
	unsigned ways = lr_blake3_ways(lanes);
	uint8_t digest[LR_BLAKE3_BYTES];

	fill();
	for (unsigned i = 0; i < sizeof(published) / sizeof(published[0]); i++) {
		lr_blake3(data, published[i].bytes, digest);
		CHECK_STR(hexadecimal(digest), published[i].digest);
		for (unsigned way = 0; way < ways; way++) {
			memset(digest, 0, sizeof(digest));
			lr_blake3_by(lanes[way], data, published[i].bytes, digest);
			CHECK_STR(hexadecimal(digest), published[i].digest);
		}
	}
}

static void is_the_same_by_every_way_at_every_length(void)
{
	unsigned lanes[LR_BLAKE3_WAYS_MAX];
	unsigned ways = lr_blake3_ways(lanes);
	uint8_t plain[LR_BLAKE3_BYTES], digest[LR_BLAKE3_BYTES];

	fill();
	/* Lengths about each number of chunks, at addresses that are aligned to nothing. */
	for (unsigned chunks = 0; chunks < 131; chunks++) {
		for (unsigned more = 0; more < 3; more++) {
			unsigned bytes = chunks * 1024 + more * 511;
			const uint8_t *at = data + chunks % 7;

			lr_blake3_by(1, at, bytes, plain);
			for (unsigned way = 1; way < ways; way++) {
				lr_blake3_by(lanes[way], at, bytes, digest);
				CHECK_MEM(digest, plain, sizeof(plain));
			}
		}
	}
}

static void goes_on_where_it_stopped(void)
{
	static const unsigned steps[] = {1, 64, 1023, 1024, 1025, 5000};
	uint8_t whole[LR_BLAKE3_BYTES], digest[LR_BLAKE3_BYTES];
	struct lr_blake3 hash;

	fill();
	for (unsigned step = 0; step < sizeof(steps) / sizeof(steps[0]); step++) {
		lr_blake3_begin(&hash);
		for (unsigned at = 0; at < LONGEST - 5000; at += steps[step]) {
			/* The digest of all so far, now and then: and more follows. */
			if (at % 7 == 0 && at < 9000) {
				lr_blake3(data, at, whole);
				lr_blake3_get(&hash, digest);
				CHECK_MEM(digest, whole, sizeof(whole));
			}
			lr_blake3_update(&hash, data + at, steps[step]);
		}
		lr_blake3_get(&hash, digest);
		lr_blake3(data, (LONGEST - 5000 + steps[step] - 1) / steps[step] * steps[step],
			  whole);
		CHECK_MEM(digest, whole, sizeof(whole));
	}
}

static const struct check_case cases[] = {
	CHECK_CASE(gives_the_published_values_with_every_way),
	CHECK_CASE(is_the_same_by_every_way_at_every_length),
	CHECK_CASE(goes_on_where_it_stopped),
};
CHECK_MAIN(cases)
