#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "hostile.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lazyrestore.h"

/* An image can name 2^50 clusters in a few hundred bytes: no one looks at all of them. */
#define LOOKUPS_MAX       2048u
#define DECODED_BYTES_MAX (8u << 20)
#define REGIONS_MAX       64u

struct hostile_counts hostile_counts;

void hostile_fail(const char *file, int line, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s:%d: ", file, line);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	abort();
}

static int memory_fd = -1;

const char *hostile_publish(const uint8_t *data, size_t bytes)
{
	static char path[64];

	if (memory_fd < 0)
		memory_fd = memfd_create("image", MFD_CLOEXEC);
	if (memory_fd < 0 || ftruncate(memory_fd, 0) < 0 || ftruncate(memory_fd, (off_t)bytes) < 0
	    || pwrite(memory_fd, data, bytes, 0) != (ssize_t)bytes)
		HOSTILE_FAIL("no memory for an image of %zu bytes", bytes);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", memory_fd);
	return path;
}

/* One image, as it is in memory and as the library has opened it. */
struct subject {
	const uint8_t *data;
	size_t bytes;
	lr_image *image;
	struct lr_image_info info;
	lr_reader *reader;
	lr_reader *other; /* reads by another way, and must say the same */
	uint8_t *packed;  /* cluster_size bytes each */
	uint8_t *spread;
	uint8_t *got;
	uint64_t decoded_bytes;
};

static bool is_open_code(int code)
{
	return code <= LR_ERR_EMPTY && code >= LR_ERR_METADATA;
}

/* The file does not change while it is read, so it cannot be too short for what was checked. */
static bool is_read_code(int64_t code)
{
	return code == LR_ERR_NODE || code == LR_ERR_ENTRY || code == LR_ERR_CHECKSUM
	       || code == LR_ERR_FRAME;
}

static void check_regions(const struct subject *subject)
{
	const struct lr_image_info *info = &subject->info;
	struct lr_region_info region;
	uint64_t clusters = 0, logical = 0;

	for (uint32_t i = 0; i < info->region_count; i++) {
		HOSTILE_CHECK(lr_image_get_region(subject->image, i, &region) == LR_OK);
		HOSTILE_CHECK(region.first_cluster == clusters);
		HOSTILE_CHECK(region.name_bytes > 0 && region.name);
		clusters += region.cluster_count;
		logical += region.length;
		if (i < REGIONS_MAX) {
			/* Two may have one name here: lazyrestore.open refuses that. */
			int64_t found = lr_image_find_region(subject->image, region.name,
							     region.name_bytes);

			HOSTILE_CHECK(found >= 0 && found <= i);
		}
	}
	HOSTILE_CHECK(clusters == info->cluster_count && logical == info->logical_bytes);
	HOSTILE_CHECK(lr_image_get_region(subject->image, info->region_count, &region)
		      == LR_ERR_NOT_FOUND);
}

static void check_raw(const struct subject *subject)
{
	const struct lr_image_info *info = &subject->info;
	uint64_t bytes = info->metadata_bytes;
	uint8_t *room;

	HOSTILE_CHECK(info->header_bytes <= subject->bytes && bytes <= subject->bytes);
	room = malloc(bytes > info->header_bytes ? bytes : info->header_bytes);
	HOSTILE_CHECK(room);
	HOSTILE_CHECK(lr_image_read_raw(subject->image, 0, room, info->header_bytes, NULL)
		      == LR_OK);
	HOSTILE_CHECK(memcmp(room, subject->data, info->header_bytes) == 0);
	HOSTILE_CHECK(lr_image_read_raw(subject->image, info->metadata_offset, room, bytes, NULL)
		      == LR_OK);
	HOSTILE_CHECK(memcmp(room, subject->data + info->metadata_offset, bytes) == 0);
	HOSTILE_CHECK(lr_image_read_raw(subject->image, subject->bytes, room, 1, NULL) < 0);
	HOSTILE_CHECK(lr_image_read_raw(subject->image, UINT64_MAX, room, 2, NULL) < 0);
	free(room);
}

static void check_files(const struct subject *subject)
{
	const struct lr_image_info *info = &subject->info;
	struct lr_problem problem = {0};
	uint8_t *room;
	int code;

	HOSTILE_CHECK(info->files_content_bytes <= 64u << 20);
	room = malloc(info->files_content_bytes + 1u);
	HOSTILE_CHECK(room);
	code = lr_image_get_files(subject->image, room, &problem);
	if (info->files_bytes == 0)
		HOSTILE_CHECK(code == LR_ERR_NOT_FOUND);
	else
		HOSTILE_CHECK(code == LR_OK || (code == LR_ERR_FILES && problem.code == code));
	free(room);
}

/* The region that a cluster is in, found in the plainest way. */
static uint32_t region_of(const struct subject *subject, uint64_t cluster,
			  struct lr_region_info *ret_region)
{
	for (uint32_t i = 0; lr_image_get_region(subject->image, i, ret_region) == LR_OK; i++)
		if (cluster - ret_region->first_cluster < ret_region->cluster_count)
			return i;
	HOSTILE_FAIL("cluster %llu is in no region", (unsigned long long)cluster);
}

static unsigned state_of(const struct lr_cluster_info *info, uint32_t page)
{
	return (unsigned)(info->states[page / 32] >> (2 * (page % 32))) & 3;
}

static void check_info(const struct subject *subject, const struct lr_cluster_info *info,
		       uint64_t cluster)
{
	uint64_t data_bytes = (uint64_t)info->data_pages * subject->info.page_size;
	uint32_t data_pages = 0;

	HOSTILE_CHECK(info->cluster == cluster && info->kind <= LR_CLUSTER_MIXED);
	HOSTILE_CHECK(info->pages > 0
		      && info->pages <= subject->info.cluster_size / subject->info.page_size);
	HOSTILE_CHECK(info->run >= 1 && info->run <= subject->info.cluster_count - cluster);
	for (uint32_t page = 0; page < info->pages; page++) {
		HOSTILE_CHECK(state_of(info, page) <= LR_PAGE_DATA);
		data_pages += state_of(info, page) == LR_PAGE_DATA;
	}
	HOSTILE_CHECK(info->data_pages == data_pages);
	if (data_pages == 0)
		return;
	HOSTILE_CHECK(info->kind == LR_CLUSTER_ZSTD || info->kind == LR_CLUSTER_RAW);
	HOSTILE_CHECK(info->run == 1);
	HOSTILE_CHECK(info->kind == LR_CLUSTER_RAW ? info->payload_bytes == data_bytes
						   : info->payload_bytes < data_bytes);
	HOSTILE_CHECK(info->payload_offset < subject->bytes
		      && info->payload_bytes <= subject->bytes - info->payload_offset);
}

/* A cluster whose data was got is the same by lr_reader_read, whole and in part. */
static void check_read(struct subject *subject, const struct lr_cluster_info *info)
{
	uint32_t page_size = subject->info.page_size;
	struct lr_region_info region;
	uint32_t number = region_of(subject, info->cluster, &region);
	uint64_t begin = (info->cluster - region.first_cluster) * subject->info.cluster_size;
	uint64_t bytes = region.length - begin;
	const uint8_t *packed = subject->packed;
	uint64_t from, part;

	if (bytes > subject->info.cluster_size)
		bytes = subject->info.cluster_size;
	for (uint32_t page = 0; page < info->pages; page++) {
		bool is_data = state_of(info, page) == LR_PAGE_DATA;

		if (is_data)
			memcpy(subject->spread + (size_t)page * page_size, packed, page_size);
		else
			memset(subject->spread + (size_t)page * page_size, 0, page_size);
		packed += is_data ? page_size : 0;
	}
	for (uint64_t i = bytes; i < (uint64_t)info->pages * page_size; i++)
		HOSTILE_CHECK(subject->spread[i] == 0);
	memset(subject->got, 0xa5, bytes);
	HOSTILE_CHECK(lr_reader_read(subject->other, number, begin, subject->got, bytes, 0, NULL)
		      == LR_OK);
	HOSTILE_CHECK(memcmp(subject->got, subject->spread, bytes) == 0);
	from = info->crc32c % bytes;
	part = 1 + (bytes - from - 1) / 2;
	memset(subject->got, 0, part);
	HOSTILE_CHECK(
		lr_reader_read(subject->other, number, begin + from, subject->got, part, 1, NULL)
		== LR_OK);
	HOSTILE_CHECK(memcmp(subject->got, subject->spread + from, part) == 0);
}

static void check_data(struct subject *subject, const struct lr_cluster_info *info)
{
	struct lr_problem problem = {0};
	int64_t got = lr_reader_get_data(subject->reader, info->cluster, subject->packed, &problem);
	const uint8_t *payload = subject->data + info->payload_offset;
	bool is_sound;

	if (info->data_pages == 0) {
		HOSTILE_CHECK(got == 0);
		return;
	}
	is_sound = lr_crc32c(0, payload, info->payload_bytes) == info->crc32c;
	subject->decoded_bytes += (uint64_t)info->data_pages * subject->info.page_size;
	HOSTILE_CHECK(is_sound || got == LR_ERR_CHECKSUM);
	if (got < 0) {
		HOSTILE_CHECK(is_read_code(got) && problem.code == got);
		HOSTILE_CHECK(problem.cluster == info->cluster);
		hostile_counts.clusters_refused++;
		return;
	}
	HOSTILE_CHECK(got == (int64_t)info->data_pages * subject->info.page_size);
	if (info->kind == LR_CLUSTER_RAW) {
		size_t whole = (size_t)got - subject->info.page_size;

		/* Of the last page what lies past its region's end is made zero. */
		HOSTILE_CHECK(memcmp(subject->packed, payload, whole) == 0);
	}
	hostile_counts.clusters_read++;
	check_read(subject, info);
}

/* Look at one cluster; how many there are alike from it on. */
static uint64_t check_cluster(struct subject *subject, uint64_t cluster)
{
	struct lr_cluster_info info;
	struct lr_problem problem = {0};
	int code = lr_reader_get_cluster(subject->reader, cluster, &info, &problem);

	if (code < 0) {
		HOSTILE_CHECK(code == LR_ERR_NODE || code == LR_ERR_ENTRY);
		HOSTILE_CHECK(problem.code == code && problem.cluster == cluster);
		HOSTILE_CHECK(lr_reader_get_data(subject->other, cluster, subject->packed, NULL)
			      == code);
		hostile_counts.clusters_refused++;
		return 1;
	}
	check_info(subject, &info, cluster);
	if (subject->decoded_bytes < DECODED_BYTES_MAX)
		check_data(subject, &info);
	return info.run;
}

static void check_clusters(struct subject *subject)
{
	uint64_t count = subject->info.cluster_count, step;

	for (uint64_t at = 0, looked = 0; at < count && looked < LOOKUPS_MAX; looked++) {
		step = check_cluster(subject, at);
		HOSTILE_CHECK(step <= count - at);
		at += step;
	}
	/* From the end too, in growing steps: the tree's other side, at all its levels. */
	for (uint64_t back = 1; back <= count && back < 1ull << 63; back *= 2)
		check_cluster(subject, count - back);
	HOSTILE_CHECK(lr_reader_get_data(subject->reader, count, subject->packed, NULL)
		      == LR_ERR_ARGUMENT);
	HOSTILE_CHECK(lr_reader_get_data(subject->reader, UINT64_MAX, subject->packed, NULL)
		      == LR_ERR_ARGUMENT);
}

/* The file ends early, or is another's, after it was opened: errors, and nothing else. */
static void check_shrunk(struct subject *subject)
{
	uint64_t count = subject->info.cluster_count;
	lr_reader *reader;

	HOSTILE_CHECK(ftruncate(memory_fd, (off_t)(subject->bytes / 2)) == 0);
	HOSTILE_CHECK(lr_reader_open(subject->image, &reader) == LR_OK);
	for (uint64_t cluster = 0; cluster < count && cluster < 16; cluster++) {
		int64_t got = lr_reader_get_data(reader, cluster, subject->packed, NULL);

		HOSTILE_CHECK(got >= 0 || is_read_code(got) || got == LR_ERR_SHORT);
	}
	lr_reader_close(reader);
}

void hostile_read(const uint8_t *data, size_t bytes)
{
	struct subject subject = {.data = data, .bytes = bytes};
	const char *path = hostile_publish(data, bytes);
	struct lr_problem problem = {0};
	int code = lr_image_open(path, &subject.image, &problem);
	size_t room;

	hostile_counts.images++;
	if (code < 0) {
		HOSTILE_CHECK(is_open_code(code) && problem.code == code);
		return;
	}
	hostile_counts.opened++;
	lr_image_get_info(subject.image, &subject.info);
	HOSTILE_CHECK(subject.info.file_bytes == bytes);
	room = subject.info.cluster_size;
	HOSTILE_CHECK(room >= 4096 && room <= 2u << 20);
	/* Each in memory of its own, so that a sanitizer sees a byte too many. */
	subject.packed = malloc(room);
	subject.spread = malloc(room);
	subject.got = malloc(room);
	HOSTILE_CHECK(subject.packed && subject.spread && subject.got);
	HOSTILE_CHECK(lr_reader_open(subject.image, &subject.reader) == LR_OK);
	HOSTILE_CHECK(lr_reader_open(subject.image, &subject.other) == LR_OK);
	check_regions(&subject);
	check_raw(&subject);
	check_files(&subject);
	check_clusters(&subject);
	check_shrunk(&subject);
	/* Readers hold the image. */
	lr_image_close(subject.image);
	lr_reader_close(subject.reader);
	lr_reader_close(subject.other);
	free(subject.packed);
	free(subject.spread);
	free(subject.got);
}
