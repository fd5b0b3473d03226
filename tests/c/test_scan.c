#include "check.h"

#include "scan.h"

#define PAGE 4096u

/* Memory that ends where a read behind it faults. */
static uint8_t *map_before_guard(uint64_t bytes)
{
	uint64_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
	uint8_t *start = mmap(NULL, whole + PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(start != MAP_FAILED);
	CHECK_CALL(mprotect(start + whole, PAGE, PROT_NONE));
	return start + whole - bytes;
}

static void finds_any_byte_of_a_page(void)
{
	uint8_t *data = map_before_guard(PAGE), state;

	CHECK_EQ(lr_scan_pages(data, PAGE, PAGE, &state), 0);
	CHECK_EQ(state, LR_PAGE_ZERO);
	for (unsigned i = 0; i < PAGE; i++) {
		data[i] = 0x80;
		CHECK_EQ(lr_scan_pages(data, PAGE, PAGE, &state), 1);
		CHECK_EQ(state, LR_PAGE_DATA);
		data[i] = 0;
	}
}

static void tells_pages_apart(void)
{
	uint8_t *data = map_before_guard(64 * PAGE), states[64];

	for (unsigned page = 0; page < 64; page += 3)
		data[page * PAGE + page * 61] = 1;
	CHECK_EQ(lr_scan_pages(data, 64 * PAGE, PAGE, states), 22);
	for (unsigned page = 0; page < 64; page++)
		CHECK_EQ(states[page], page % 3 == 0 ? LR_PAGE_DATA : LR_PAGE_ZERO);
}

static void takes_any_length_and_alignment(void)
{
	for (unsigned bytes = 1; bytes < 3 * PAGE; bytes += 97) {
		uint8_t *data = map_before_guard(bytes), states[4] = {9, 9, 9, 9};
		uint64_t pages = (bytes + PAGE - 1) / PAGE;

		CHECK_EQ(lr_scan_pages(data, bytes, PAGE, states), 0);
		CHECK_EQ(states[pages], 9);
		data[bytes - 1] = 1;
		CHECK_EQ(lr_scan_pages(data, bytes, PAGE, states), 1);
		CHECK_EQ(states[pages - 1], LR_PAGE_DATA);
		if (pages > 1)
			CHECK_EQ(states[pages - 2], LR_PAGE_ZERO);
	}
}

static void does_nothing_for_nothing(void)
{
	uint8_t state = 9, data[1] = {1};

	CHECK_EQ(lr_scan_pages(data, 0, PAGE, &state), 0);
	CHECK_EQ(lr_gather_pages(data, 0, PAGE, &state, data), 0);
	CHECK_EQ(state, 9);
}

static void gathers_data_pages_in_order_and_pads_the_last(void)
{
	uint64_t bytes = 4 * PAGE + 100;
	uint8_t *data = map_before_guard(bytes), *out = map_before_guard(3 * PAGE);
	const uint8_t states[] = {LR_PAGE_DATA, LR_PAGE_ZERO, LR_PAGE_HOLE, LR_PAGE_DATA,
				  LR_PAGE_DATA};

	for (uint64_t i = 0; i < bytes; i++)
		data[i] = (uint8_t)(i / PAGE + i % 7 + 1);
	memset(out, 0xee, 3 * PAGE);
	CHECK_EQ(lr_gather_pages(data, bytes, PAGE, states, out), 3 * PAGE);
	CHECK_MEM(out, data, PAGE);
	CHECK_MEM(out + PAGE, data + 3 * PAGE, PAGE);
	CHECK_MEM(out + 2 * PAGE, data + 4 * PAGE, 100);
	CHECK(lr_scan_is_zero(out + 2 * PAGE + 100, PAGE - 100));
}

static void scans_larger_pages(void)
{
	uint8_t *data = map_before_guard(3 * 65536), states[3];

	data[65536] = 1;
	CHECK_EQ(lr_scan_pages(data, 3 * 65536, 65536, states), 1);
	CHECK_EQ(states[0], LR_PAGE_ZERO);
	CHECK_EQ(states[1], LR_PAGE_DATA);
	CHECK_EQ(states[2], LR_PAGE_ZERO);
}

static const struct check_case cases[] = {
	CHECK_CASE(finds_any_byte_of_a_page),
	CHECK_CASE(tells_pages_apart),
	CHECK_CASE(takes_any_length_and_alignment),
	CHECK_CASE(does_nothing_for_nothing),
	CHECK_CASE(gathers_data_pages_in_order_and_pads_the_last),
	CHECK_CASE(scans_larger_pages),
};
CHECK_MAIN(cases)
