#include "check.h"

#include "crc32c.h"

typedef uint32_t crc_function(uint32_t crc, const void *data, uint64_t bytes);

static crc_function *const ways[] = {lr_crc32c, lr_crc32c_by_table};

/* RFC 3720, B.4: what iSCSI has to compute. */
static void gives_the_published_values(void)
{
	uint8_t zeros[32] = {0}, ones[32], up[32], down[32];

	memset(ones, 0xff, sizeof(ones));
	for (unsigned i = 0; i < 32; i++) {
		up[i] = (uint8_t)i;
		down[i] = (uint8_t)(31 - i);
	}
	for (unsigned way = 0; way < 2; way++) {
		CHECK_EQ(ways[way](0, zeros, 32), 0x8a9136aau);
		CHECK_EQ(ways[way](0, ones, 32), 0x62a8ab43u);
		CHECK_EQ(ways[way](0, up, 32), 0x46dd794eu);
		CHECK_EQ(ways[way](0, down, 32), 0x113fdb5cu);
		CHECK_EQ(ways[way](0, "123456789", 9), 0xe3069283u);
		CHECK_EQ(ways[way](0, "", 0), 0);
	}
}

static void is_the_same_by_table_at_every_length_and_alignment(void)
{
	uint8_t data[600];

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * i + 31 * i);
	for (unsigned start = 0; start < 16; start++)
		for (unsigned bytes = 0; bytes < 300; bytes++)
			CHECK_EQ(lr_crc32c(7, data + start, bytes),
				 lr_crc32c_by_table(7, data + start, bytes));
}

static void goes_on_where_it_stopped(void)
{
	const char *text = "a checksum may be taken in pieces";
	uint64_t bytes = strlen(text);
	uint32_t whole = lr_crc32c(0, text, bytes);

	for (unsigned way = 0; way < 2; way++)
		for (uint64_t cut = 0; cut <= bytes; cut++)
			CHECK_EQ(ways[way](ways[way](0, text, cut), text + cut, bytes - cut),
				 whole);
}

static void sees_every_single_bit(void)
{
	uint8_t data[64] = {1, 2, 3};
	uint32_t before = lr_crc32c(0, data, sizeof(data));

	for (unsigned bit = 0; bit < 8 * sizeof(data); bit++) {
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		CHECK_NE(lr_crc32c(0, data, sizeof(data)), before);
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

static const struct check_case cases[] = {
	CHECK_CASE(gives_the_published_values),
	CHECK_CASE(is_the_same_by_table_at_every_length_and_alignment),
	CHECK_CASE(goes_on_where_it_stopped),
	CHECK_CASE(sees_every_single_bit),
};
CHECK_MAIN(cases)
