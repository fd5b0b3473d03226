/* Opening images: what is read, what is refused and with which code. */
#include "check.h"

#include <sys/stat.h>

#include "format.h"
#include "image_builder.h"

static int try_open(struct image *image, struct lr_problem *ret_problem)
{
	lr_image *opened = NULL;
	int code;

	image_publish(image);
	code = lr_image_open(image->path, &opened, ret_problem);
	if (code == LR_OK)
		lr_image_close(opened);
	else
		CHECK(opened == NULL);
	return code;
}

static void opens_and_tells(void)
{
	struct image image;
	struct lr_image_info info;
	struct lr_region_info region;
	lr_image *opened;

	image_init(&image, 4096, 65536);
	image_add(&image, "weights", 1000000, "drzh");
	image_add(&image, "empty", 0, "d");
	image_add(&image, "zeros", 64ull << 30, "z");
	image_build(&image);
	image_publish(&image);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	lr_image_get_info(opened, &info);
	CHECK_EQ(info.version, 1);
	CHECK_EQ(info.region_count, 3);
	CHECK_EQ(info.cluster_count, 16 + (64 << 14));
	CHECK_EQ(info.logical_bytes, 1000000 + (64ull << 30));
	CHECK(info.bytes_read_at_open < 140000);
	CHECK_EQ(lr_image_get_region(opened, 2, &region), LR_OK);
	CHECK_EQ(region.first_cluster, 16);
	CHECK_EQ(region.length, 64ull << 30);
	CHECK_EQ(lr_image_get_region(opened, 3, &region), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_image_find_region(opened, "empty", 5), 1);
	CHECK_EQ(lr_image_find_region(opened, "empt", 4), LR_ERR_NOT_FOUND);
	lr_image_close(opened);
	image_fini(&image);
}

static void refuses_what_is_no_file(void)
{
	lr_image *opened;
	struct lr_problem problem;
	char fifo[] = "/tmp/test_image.XXXXXX";

	CHECK_EQ(lr_image_open("/nonexistent/image", &opened, &problem), LR_ERR_NOT_FOUND);
	CHECK_EQ(problem.os_error, ENOENT);
	CHECK_EQ(lr_image_open("/tmp", &opened, &problem), LR_ERR_IO);
	CHECK_EQ(problem.os_error, EISDIR);
	CHECK(mkdtemp(fifo));
	CHECK_CALL(rmdir(fifo));
	CHECK_CALL(mkfifo(fifo, 0600));
	CHECK_EQ(lr_image_open(fifo, &opened, &problem), LR_ERR_IO);
	unlink(fifo);
	CHECK_EQ(lr_image_open(NULL, &opened, NULL), LR_ERR_ARGUMENT);
}

/* Truncated anywhere: an error, and the one that says so unless not even the beginning is there. */
static void refuses_every_truncation(void)
{
	struct image image;
	uint64_t bytes;

	image_make(&image, 4096, 65536, 70000, "drzh");
	bytes = image.bytes;
	for (uint64_t cut = 0; cut < bytes; cut += cut < 300 || cut + 400 > bytes ? 1 : 97) {
		image.bytes = cut;
		int code = try_open(&image, NULL);

		CHECK_EQ(code, cut == 0               ? LR_ERR_EMPTY
			       : cut < LR_MAGIC_BYTES ? LR_ERR_MAGIC
						      : LR_ERR_TRUNCATED);
	}
	image.bytes = bytes;
	CHECK_EQ(try_open(&image, NULL), LR_OK);
	image_fini(&image);
}

struct damage {
	const char *what;
	char where; /* f footer, r root, R region 0, F the file */
	unsigned field;
	unsigned width_bytes;
	uint64_t value;
	int expected;
};

static const struct damage damages[] = {
	{"magic", 'F', 3, 1, 'x', LR_ERR_MAGIC},
	{"version", 'f', LR_FOOTER_VERSION, 4, 2, LR_ERR_VERSION},
	{"version 0", 'f', LR_FOOTER_VERSION, 4, 0, LR_ERR_FOOTER},
	{"feature", 'f', LR_FOOTER_CRITICAL, 8, 1ull << 63, LR_ERR_FEATURE},
	{"compatible feature", 'f', LR_FOOTER_COMPATIBLE, 8, 2, LR_OK},
	{"files without a record", 'f', LR_FOOTER_COMPATIBLE, 8, 1, LR_ERR_FOOTER},
	{"a record without files", 'f', LR_FOOTER_FILES_OFFSET, 8, 100, LR_ERR_FOOTER},
	{"page size", 'f', LR_FOOTER_PAGE_SIZE, 4, 4097, LR_ERR_FOOTER},
	{"small page", 'f', LR_FOOTER_PAGE_SIZE, 4, 2048, LR_ERR_FOOTER},
	{"page of none", 'f', LR_FOOTER_PAGE_SIZE, 4, 0, LR_ERR_FOOTER},
	{"large cluster", 'f', LR_FOOTER_CLUSTER_SIZE, 4, 4u << 20, LR_ERR_FOOTER},
	{"odd cluster", 'f', LR_FOOTER_CLUSTER_SIZE, 4, 65537, LR_ERR_FOOTER},
	{"header of none", 'f', LR_FOOTER_HEADER_BYTES, 4, 0, LR_ERR_FOOTER},
	{"long header", 'f', LR_FOOTER_HEADER_BYTES, 4, UINT32_MAX, LR_ERR_FOOTER},
	{"file length", 'f', LR_FOOTER_FILE_BYTES, 8, 1, LR_ERR_TRUNCATED},
	{"root outside", 'f', LR_FOOTER_ROOT_OFFSET, 8, UINT64_MAX - 100, LR_ERR_FOOTER},
	{"root over footer", 'f', LR_FOOTER_ROOT_SIZE, 4, UINT32_MAX, LR_ERR_FOOTER},
	{"small root", 'f', LR_FOOTER_ROOT_SIZE, 4, 127, LR_ERR_FOOTER},
	{"metadata outside", 'f', LR_FOOTER_METADATA_OFFSET, 8, 1ull << 62, LR_ERR_FOOTER},
	{"metadata of none", 'f', LR_FOOTER_METADATA_SIZE, 4, 0, LR_ERR_FOOTER},
	{"footer reserved", 'f', LR_FOOTER_RESERVED, 4, 1, LR_ERR_FOOTER},
	{"footer reserved end", 'f', LR_FOOTER_CRC - 1, 1, 1, LR_ERR_FOOTER},
	{"regions", 'r', LR_ROOT_REGION_COUNT, 4, UINT32_MAX, LR_ERR_ROOT},
	{"fewer regions", 'r', LR_ROOT_REGION_COUNT, 4, 0, LR_ERR_ROOT},
	{"names", 'r', LR_ROOT_NAMES_BYTES, 4, UINT32_MAX, LR_ERR_ROOT},
	{"no height", 'r', LR_ROOT_TREE_HEIGHT, 4, 0, LR_ERR_ROOT},
	{"too high", 'r', LR_ROOT_TREE_HEIGHT, 4, 9, LR_ERR_ROOT},
	{"higher than needed", 'r', LR_ROOT_TREE_HEIGHT, 4, 2, LR_ERR_ROOT},
	{"root reserved", 'r', LR_ROOT_RESERVED_1, 4, 1, LR_ERR_ROOT},
	{"root reserved end", 'r', LR_ROOT_BYTES - 1, 1, 1, LR_ERR_ROOT},
	{"clusters", 'r', LR_ROOT_CLUSTER_COUNT, 8, UINT64_MAX, LR_ERR_ROOT},
	{"logical", 'r', LR_ROOT_LOGICAL_BYTES, 8, 1, LR_ERR_ROOT},
	{"tree kind", 'r', LR_ROOT_TREE + LR_ENTRY_KIND, 1, 3, LR_ERR_ROOT},
	{"tree reserved", 'r', LR_ROOT_TREE + LR_ENTRY_RESERVED, 1, 1, LR_ERR_ROOT},
	{"uniform tree with a place", 'r', LR_ROOT_TREE + LR_ENTRY_KIND, 1, 0, LR_ERR_ROOT},
	{"length", 'R', LR_REGION_LENGTH, 8, UINT64_MAX, LR_ERR_ROOT},
	{"first cluster", 'R', LR_REGION_FIRST_CLUSTER, 8, 1, LR_ERR_ROOT},
	{"cluster count", 'R', LR_REGION_CLUSTER_COUNT, 8, 1, LR_ERR_ROOT},
	{"name outside", 'R', LR_REGION_NAME_OFFSET, 4, UINT32_MAX, LR_ERR_ROOT},
	{"name past its end", 'R', LR_REGION_NAME_BYTES, 4, 7, LR_ERR_ROOT},
	{"no name", 'R', LR_REGION_NAME_BYTES, 4, 0, LR_ERR_ROOT},
	{"protection", 'R', LR_REGION_PROTECTION, 4, 8, LR_ERR_ROOT},
	{"flags", 'R', LR_REGION_FLAGS, 4, 2, LR_ERR_ROOT},
	{"codec", 'R', LR_REGION_CODEC, 1, 2, LR_ERR_ROOT},
	{"filter", 'R', LR_REGION_FILTER, 1, 1, LR_ERR_ROOT},
	{"region reserved", 'R', LR_REGION_BYTES - 1, 1, 1, LR_ERR_ROOT},
};

static uint64_t place_of(const struct image *image, const struct damage *damage)
{
	switch (damage->where) {
	case 'f':
		return image->bytes - LR_FOOTER_BYTES + damage->field;
	case 'r':
		return image->root_offset + damage->field;
	case 'R':
		return image->root_offset + LR_ROOT_BYTES + damage->field;
	default:
		return damage->field;
	}
}

/* Each field, with checksums that are right, gives its own code. */
static void refuses_each_wrong_field(void)
{
	for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
		struct image image;
		struct lr_problem problem = {0};
		int code;

		image_make(&image, 4096, 65536, 300000, "drzh");
		image_put(image.file + place_of(&image, &damages[i]), damages[i].value,
			  damages[i].width_bytes);
		image_reseal(image.file, image.bytes, false);
		code = try_open(&image, &problem);
		if (code != damages[i].expected || problem.code != code)
			CHECK_FAIL("%s: got %s, expected %s", damages[i].what, lr_error_name(code),
				   lr_error_name(damages[i].expected));
		image_fini(&image);
	}
}

/* Each checksum, wrong by itself. */
static void refuses_each_wrong_checksum(void)
{
	static const struct {
		unsigned field;
		int expected;
	} fields[] = {
		{LR_FOOTER_HEADER_CRC, LR_ERR_HEADER},
		{LR_FOOTER_ROOT_CRC, LR_ERR_ROOT},
		{LR_FOOTER_METADATA_CRC, LR_ERR_METADATA},
		{LR_FOOTER_CRC, LR_ERR_FOOTER},
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		struct image image;
		uint8_t *footer;

		image_make(&image, 4096, 65536, 300000, "drzh");
		footer = image.file + image.bytes - LR_FOOTER_BYTES;
		footer[fields[i].field] ^= 1;
		if (fields[i].field != LR_FOOTER_CRC)
			image_put(footer + LR_FOOTER_CRC, lr_crc32c(0, footer, LR_FOOTER_CRC), 4);
		CHECK_EQ(try_open(&image, NULL), fields[i].expected);
		image_fini(&image);
	}
}

/* An image that says it is of 2^62 bytes opens at once, and takes no memory to speak of. */
static void opens_the_largest(void)
{
	struct image image;
	struct lr_cluster_info info;
	lr_reader *reader;
	lr_image *opened;

	image_make(&image, 4096, 4096, 1ull << 62, "z");
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
	CHECK_EQ(lr_reader_get_cluster(reader, (1ull << 50) - 1, &info, NULL), LR_OK);
	CHECK_EQ(info.kind, LR_CLUSTER_ZERO);
	CHECK_EQ(info.run, 1);
	CHECK_EQ(lr_reader_get_cluster(reader, 1ull << 50, &info, NULL), LR_ERR_ARGUMENT);
	lr_reader_close(reader);
	lr_image_close(opened);
	image_fini(&image);
}

static void lives_as_long_as_its_users(void)
{
	struct image image;
	lr_image *opened;
	lr_reader *reader;
	uint8_t byte;

	image_make(&image, 4096, 65536, 70000, "d");
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
	lr_image_close(opened);
	CHECK_EQ(lr_reader_read(reader, 0, 66000, &byte, 1, 0, NULL), LR_OK);
	CHECK_EQ(byte, image.regions[0].bytes[66000]);
	lr_reader_close(reader);
	lr_image_close(NULL);
	image_fini(&image);
}

static void reads_raw_within_bounds_only(void)
{
	struct image image;
	lr_image *opened;
	uint8_t bytes[16];

	image_make(&image, 4096, 65536, 70000, "d");
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	CHECK_EQ(lr_image_read_raw(opened, 0, bytes, LR_MAGIC_BYTES, NULL), LR_OK);
	CHECK_MEM(bytes, LR_MAGIC, LR_MAGIC_BYTES);
	CHECK_EQ(lr_image_read_raw(opened, image.bytes - 15, bytes, 16, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_image_read_raw(opened, UINT64_MAX, bytes, 2, NULL), LR_ERR_ARGUMENT);
	CHECK_CALL(ftruncate(image.fd, 20));
	CHECK_EQ(lr_image_read_raw(opened, 10, bytes, 16, NULL), LR_ERR_SHORT);
	lr_image_close(opened);
	image_fini(&image);
}

static const struct check_case cases[] = {
	CHECK_CASE(opens_and_tells),
	CHECK_CASE(refuses_what_is_no_file),
	CHECK_CASE(refuses_every_truncation),
	CHECK_CASE(refuses_each_wrong_field),
	CHECK_CASE(refuses_each_wrong_checksum),
	CHECK_CASE(opens_the_largest),
	CHECK_CASE(lives_as_long_as_its_users),
	CHECK_CASE(reads_raw_within_bounds_only),
};
CHECK_MAIN(cases)
