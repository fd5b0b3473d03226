/* Reading without userfaultfd: any part of any region, whatever its pages are. */
#include "check.h"

#include "image_builder.h"

#define LENGTH 500003u

static struct image image;
static lr_image *opened;
static lr_reader *reader;
static uint8_t *got;

static void set_up(void)
{
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
	got = malloc(LENGTH);
	CHECK(got);
}

static void tear_down(void)
{
	lr_reader_close(reader);
	lr_image_close(opened);
	image_fini(&image);
	free(got);
}

static void reads_any_part(void)
{
	static const uint32_t sizes[][2] = {
		{4096, 4096}, {4096, 65536}, {65536, 65536}, {16384, 1 << 20}};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint64_t random = i;

		image_make(&image, sizes[i][0], sizes[i][1], LENGTH,
			   i % 2 ? "drzh2zzzzzzzzzzzzzzzzzzr" : "drzhzzzzzzzzzzzzzzz8zzzr");
		set_up();
		for (int round = 0; round < 500; round++) {
			uint64_t offset = image_random(&random) % (LENGTH + 1);
			uint64_t bytes = image_random(&random) % (LENGTH - offset + 1);

			memset(got, 0xee, LENGTH);
			CHECK_EQ(lr_reader_read(reader, 0, offset, got, bytes, 0, NULL), LR_OK);
			CHECK_MEM(got, image.regions[0].bytes + offset, bytes);
			if (bytes < LENGTH)
				CHECK_EQ(got[bytes], 0xee);
		}
		CHECK_EQ(lr_reader_read(reader, 0, LENGTH, got, 1, 0, NULL), LR_ERR_ARGUMENT);
		CHECK_EQ(lr_reader_read(reader, 0, UINT64_MAX, got, 2, 0, NULL), LR_ERR_ARGUMENT);
		CHECK_EQ(lr_reader_read(reader, 1, 0, got, 1, 0, NULL), LR_ERR_NOT_FOUND);
		tear_down();
	}
}

/* With skip_zeros only data is written. */
static void leaves_zeros_alone(void)
{
	image_make(&image, 4096, 65536, LENGTH, "dz");
	set_up();
	memset(got, 0xee, LENGTH);
	CHECK_EQ(lr_reader_read(reader, 0, 0, got, LENGTH, 1, NULL), LR_OK);
	for (unsigned i = 0; i < LENGTH; i++)
		CHECK_EQ(got[i], i / 4096 % 2 ? 0xee : image.regions[0].bytes[i]);
	tear_down();
}

/* Damage to a cluster's data: its zero pages, and all other clusters, can be read. */
static void reads_around_damage(void)
{
	struct lr_problem problem;

	image_make(&image, 4096, 65536, LENGTH, "rz");
	image.file[image_get(image.file + image_entry_offset(&image, 1), 8) + 7] ^= 0x80;
	image_publish(&image);
	set_up();
	CHECK_EQ(lr_reader_read(reader, 0, 0, got, 65536, 0, NULL), LR_OK);
	CHECK_EQ(lr_reader_read(reader, 0, 65535, got, 2, 0, &problem), LR_ERR_CHECKSUM);
	CHECK_EQ(problem.cluster, 1);
	CHECK_EQ(problem.file_offset, image_get(image.file + image_entry_offset(&image, 1), 8));
	CHECK_EQ(lr_reader_read(reader, 0, 65536 + 4096, got, 4096, 0, NULL), LR_OK);
	CHECK_EQ(got[0], 0);
	CHECK_EQ(lr_reader_read(reader, 0, 65536 + 8192, got, 1, 0, NULL), LR_ERR_CHECKSUM);
	CHECK_EQ(lr_reader_read(reader, 0, 131072, got, LENGTH - 131072, 0, NULL), LR_OK);
	CHECK_MEM(got, image.regions[0].bytes + 131072, LENGTH - 131072);
	tear_down();
}

/* A frame that does not hold what its entry says, though its checksum is right. */
static void refuses_frames_of_another_size(void)
{
	uint8_t *entry;

	image_make(&image, 4096, 65536, LENGTH, "d");
	entry = image.file + image_entry_offset(&image, 0);
	/* One data page less, and one cluster that has another's frame cut short. */
	entry[24] = (uint8_t)((entry[24] & ~3u) | LR_PAGE_ZERO);
	entry = image.file + image_entry_offset(&image, 1);
	image_put(entry + 8, image_get(entry + 8, 4) - 1, 4);
	entry = image.file + image_entry_offset(&image, 2);
	image_put(entry + 8, image_get(entry + 8, 4) + 1, 4);
	image_reseal(image.file, image.bytes, true);
	image_publish(&image);
	set_up();
	for (uint64_t cluster = 0; cluster < 3; cluster++)
		CHECK_EQ(lr_reader_get_data(reader, cluster, got, NULL), LR_ERR_FRAME);
	CHECK_EQ(lr_reader_get_data(reader, 3, got, NULL), 65536);
	CHECK_MEM(got, image.regions[0].bytes + 3 * 65536, 65536);
	tear_down();
}

static const struct check_case cases[] = {
	CHECK_CASE(reads_any_part),
	CHECK_CASE(leaves_zeros_alone),
	CHECK_CASE(reads_around_damage),
	CHECK_CASE(refuses_frames_of_another_size),
};
CHECK_MAIN(cases)
