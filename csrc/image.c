/* Opening an image: footer, header, root and region table are validated here; the tree below the
 * root is index.c's. */
#include "image.h"

#include <stdlib.h>
#include <string.h>

#include "planes.h"
#include "span.h"

/* What is read at once of the end, and of the begin: mostly all that is needed. */
#define TAIL_BYTES 8192u
#define HEAD_BYTES 1024u
/* Metadata that begins as near to the end as that is verified when the image is opened: it is large
 * only in images with very many regions, and then by who reads it. */
#define METADATA_NEAR 65536u

/* What the footer says, before the rest is believed. */
struct footer {
	struct lr_image_info info;
	uint64_t root_offset;
	uint32_t root_bytes;
	uint32_t root_crc;
	uint32_t metadata_crc;
	uint32_t header_crc;
};

static bool is_power_of_two_in(uint64_t value, uint64_t least, uint64_t most)
{
	return value >= least && value <= most && (value & (value - 1)) == 0;
}

static int fail(struct lr_problem *ret_problem, int code, uint64_t file_offset)
{
	return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, file_offset);
}

static int check_footer_values(const struct footer *footer, uint64_t file_bytes,
			       struct lr_problem *ret_problem)
{
	const struct lr_image_info *info = &footer->info;
	uint64_t end = file_bytes - LR_FOOTER_RECORD_BYTES;

	if (info->file_bytes != file_bytes)
		return fail(ret_problem, LR_ERR_TRUNCATED, end);
	if (!is_power_of_two_in(info->page_size, LR_PAGE_SIZE_MIN, LR_PAGE_SIZE_MAX)
	    || !is_power_of_two_in(info->cluster_size, LR_CLUSTER_SIZE_MIN, LR_CLUSTER_SIZE_MAX)
	    || info->cluster_size < info->page_size)
		return fail(ret_problem, LR_ERR_FOOTER, end);
	if (info->header_bytes <= LR_MAGIC_BYTES || info->header_bytes > LR_HEADER_MAX_BYTES
	    || info->header_bytes > end)
		return fail(ret_problem, LR_ERR_FOOTER, end);
	if (footer->root_bytes < LR_ROOT_BYTES
	    || !lr_span_fits(footer->root_offset, footer->root_bytes, end))
		return fail(ret_problem, LR_ERR_FOOTER, end);
	if (info->metadata_bytes == 0 || info->metadata_bytes > LR_METADATA_BYTES_MAX
	    || !lr_span_fits(info->metadata_offset, info->metadata_bytes, end))
		return fail(ret_problem, LR_ERR_FOOTER, end);
	return LR_OK;
}

/* The fields of the record of files: all zero where there is none. */
static bool parse_files(struct lr_span *span, uint64_t end, struct lr_image_info *info)
{
	info->files_offset = lr_span_u64(span, LR_FOOTER_FILES_OFFSET);
	info->files_bytes = lr_span_u32(span, LR_FOOTER_FILES_SIZE);
	info->files_crc32c = lr_span_u32(span, LR_FOOTER_FILES_CRC);
	info->files_content_bytes = lr_span_u32(span, LR_FOOTER_FILES_CONTENT);
	if (!(info->compatible & LR_FORMAT_FILES))
		return lr_span_is_zero(span, LR_FOOTER_FILES_OFFSET,
				       LR_FOOTER_RESERVED_2 - LR_FOOTER_FILES_OFFSET);
	return info->files_offset != 0 && info->files_bytes != 0
	       && info->files_bytes <= LR_FILES_BYTES_MAX && info->files_content_bytes != 0
	       && info->files_content_bytes <= LR_FILES_BYTES_MAX
	       && lr_span_fits(info->files_offset, info->files_bytes, end);
}

/* `record` is the file's last LR_FOOTER_RECORD_BYTES. */
static int parse_footer(const uint8_t *record, uint64_t file_bytes, struct footer *ret_footer,
			struct lr_problem *ret_problem)
{
	struct lr_span span = lr_span_of(record + LR_FOOTER_PREFIX_BYTES, LR_FOOTER_BYTES);
	uint64_t end = file_bytes - LR_FOOTER_RECORD_BYTES;
	struct lr_image_info *info = &ret_footer->info;

	if (memcmp(record, LR_FOOTER_PREFIX, LR_FOOTER_PREFIX_BYTES) != 0)
		return fail(ret_problem, LR_ERR_TRUNCATED, file_bytes);
	if (lr_crc32c(0, span.data, LR_FOOTER_CRC) != lr_span_u32(&span, LR_FOOTER_CRC))
		return fail(ret_problem, LR_ERR_FOOTER, end);
	info->version = lr_span_u32(&span, LR_FOOTER_VERSION);
	if (info->version > LR_FORMAT_VERSION)
		return fail(ret_problem, LR_ERR_VERSION, end);
	info->critical = lr_span_u64(&span, LR_FOOTER_CRITICAL);
	if (info->critical & ~LR_FORMAT_CRITICAL_KNOWN)
		return fail(ret_problem, LR_ERR_FEATURE, end);
	if (info->version == 0
	    || !lr_span_is_zero(&span, LR_FOOTER_RESERVED,
				LR_FOOTER_FILES_OFFSET - LR_FOOTER_RESERVED)
	    || !lr_span_is_zero(&span, LR_FOOTER_RESERVED_2, LR_FOOTER_CRC - LR_FOOTER_RESERVED_2))
		return fail(ret_problem, LR_ERR_FOOTER, end);
	info->compatible = lr_span_u64(&span, LR_FOOTER_COMPATIBLE);
	if (!parse_files(&span, end, info))
		return fail(ret_problem, LR_ERR_FOOTER, end);
	info->page_size = lr_span_u32(&span, LR_FOOTER_PAGE_SIZE);
	info->cluster_size = lr_span_u32(&span, LR_FOOTER_CLUSTER_SIZE);
	info->header_bytes = lr_span_u32(&span, LR_FOOTER_HEADER_BYTES);
	info->file_bytes = lr_span_u64(&span, LR_FOOTER_FILE_BYTES);
	info->metadata_offset = lr_span_u64(&span, LR_FOOTER_METADATA_OFFSET);
	info->metadata_bytes = lr_span_u32(&span, LR_FOOTER_METADATA_SIZE);
	memcpy(info->id, span.data + LR_FOOTER_ID, sizeof(info->id));
	memcpy(info->digest, span.data + LR_FOOTER_DIGEST, sizeof(info->digest));
	ret_footer->root_offset = lr_span_u64(&span, LR_FOOTER_ROOT_OFFSET);
	ret_footer->root_bytes = lr_span_u32(&span, LR_FOOTER_ROOT_SIZE);
	ret_footer->root_crc = lr_span_u32(&span, LR_FOOTER_ROOT_CRC);
	ret_footer->metadata_crc = lr_span_u32(&span, LR_FOOTER_METADATA_CRC);
	ret_footer->header_crc = lr_span_u32(&span, LR_FOOTER_HEADER_CRC);
	return check_footer_values(ret_footer, file_bytes, ret_problem);
}

/* Bytes of a file, of which the first and the last have been read already. */
struct tail {
	const struct lr_source *source;
	uint64_t offset; /* of `data` */
	uint64_t head_bytes;
	uint64_t bytes_read;
	uint8_t head[HEAD_BYTES];
	uint8_t data[TAIL_BYTES];
};

/* Get a part of the file, from what was read where it is there. Returns it in memory of its own,
 * for the caller to free. */
static int get_part(struct tail *tail, uint64_t offset, uint64_t bytes, uint32_t crc, int bad_crc,
		    uint8_t **ret_part, struct lr_problem *ret_problem)
{
	uint8_t *part = malloc(bytes);
	int code = LR_OK;

	if (!part)
		return fail(ret_problem, LR_ERR_NOMEM, LR_NOWHERE);
	if (offset >= tail->offset) {
		memcpy(part, tail->data + (offset - tail->offset), bytes);
	} else if (lr_span_fits(offset, bytes, tail->head_bytes)) {
		memcpy(part, tail->head + offset, bytes);
	} else {
		code = lr_source_read(tail->source, offset, part, bytes, ret_problem);
		tail->bytes_read += bytes;
	}
	if (code == LR_OK && lr_crc32c(0, part, bytes) != crc)
		code = fail(ret_problem, bad_crc, offset);
	if (code < 0) {
		free(part);
		return code;
	}
	*ret_part = part;
	return LR_OK;
}

static int parse_root_head(struct lr_image *image, uint64_t root_offset,
			   struct lr_problem *ret_problem)
{
	struct lr_span span = lr_span_of(image->root, image->root_bytes);
	struct lr_image_info *info = &image->info;
	uint64_t names_bytes = lr_span_u32(&span, LR_ROOT_NAMES_BYTES);
	uint64_t height = lr_span_u32(&span, LR_ROOT_TREE_HEIGHT);
	uint64_t reach;

	info->region_count = lr_span_u32(&span, LR_ROOT_REGION_COUNT);
	info->cluster_count = lr_span_u64(&span, LR_ROOT_CLUSTER_COUNT);
	info->logical_bytes = lr_span_u64(&span, LR_ROOT_LOGICAL_BYTES);
	info->zero_bytes = lr_span_u64(&span, LR_ROOT_ZERO_BYTES);
	info->hole_bytes = lr_span_u64(&span, LR_ROOT_HOLE_BYTES);
	info->duplicate_bytes = lr_span_u64(&span, LR_ROOT_DUPLICATE_BYTES);
	info->payload_bytes = lr_span_u64(&span, LR_ROOT_PAYLOAD_BYTES);
	info->stored_clusters = lr_span_u64(&span, LR_ROOT_STORED_CLUSTERS);
	if (info->region_count > LR_REGIONS_MAX || height < 1 || height > LR_TREE_HEIGHT_MAX
	    || !lr_span_is_zero(&span, LR_ROOT_RESERVED_1, 4)
	    || !lr_span_is_zero(&span, LR_ROOT_RESERVED_2, LR_ROOT_BYTES - LR_ROOT_RESERVED_2)
	    || image->root_bytes
		       != LR_ROOT_BYTES + (uint64_t)info->region_count * LR_REGION_BYTES
				  + names_bytes)
		return fail(ret_problem, LR_ERR_ROOT, root_offset);
	/* The smallest height that reaches all clusters, as the writer must have chosen it. */
	reach = height == LR_TREE_HEIGHT_MAX ? UINT64_MAX : 1ull << (height * LR_NODE_FANOUT_BITS);
	if (info->cluster_count > reach
	    || (height > 1 && info->cluster_count <= 1ull << ((height - 1) * LR_NODE_FANOUT_BITS)))
		return fail(ret_problem, LR_ERR_ROOT, root_offset);
	if (lr_index_parse_ref(image->root + LR_ROOT_TREE, LR_REF_BYTES, &image->index.root) < 0)
		return fail(ret_problem, LR_ERR_ROOT, root_offset);
	image->index.height = (uint32_t)height;
	return LR_OK;
}

static struct lr_span region_entry(const struct lr_image *image, uint32_t region)
{
	return lr_span_of(image->root + LR_ROOT_BYTES + (size_t)region * LR_REGION_BYTES,
			  LR_REGION_BYTES);
}

/* What a region says of its clusters' planes is for people; but it is nonsense nowhere. */
static bool check_filter(const struct lr_image *image, struct lr_span *span)
{
	uint8_t planes = lr_span_u8(span, LR_REGION_PLANES);

	if (lr_span_u8(span, LR_REGION_FILTER) == 0)
		return planes == 0;
	return lr_span_u8(span, LR_REGION_FILTER) == LR_REGION_FILTER_PLANES
	       && image->info.critical & LR_FORMAT_PLANES && lr_planes_is_width(planes);
}

/* Regions must follow one another without gaps, in clusters, and their names lie within the names.
 */
static int check_regions(const struct lr_image *image, uint64_t root_offset,
			 struct lr_problem *ret_problem)
{
	const struct lr_image_info *info = &image->info;
	uint64_t names_bytes =
		image->root_bytes - LR_ROOT_BYTES - (uint64_t)info->region_count * LR_REGION_BYTES;
	uint64_t clusters = 0, logical_bytes = 0;

	for (uint32_t i = 0; i < info->region_count; i++) {
		struct lr_span span = region_entry(image, i);
		uint64_t length = lr_span_u64(&span, LR_REGION_LENGTH);
		uint64_t count = lr_span_u64(&span, LR_REGION_CLUSTER_COUNT);
		uint64_t name_offset = lr_span_u32(&span, LR_REGION_NAME_OFFSET);
		uint64_t name_bytes = lr_span_u32(&span, LR_REGION_NAME_BYTES);

		if (length > LR_LENGTH_MAX - logical_bytes
		    || count != length / info->cluster_size + (length % info->cluster_size != 0)
		    || lr_span_u64(&span, LR_REGION_FIRST_CLUSTER) != clusters || name_bytes == 0
		    || name_bytes > LR_NAME_BYTES_MAX
		    || !lr_span_fits(name_offset, name_bytes, names_bytes)
		    || lr_span_u32(&span, LR_REGION_PROTECTION) > 7
		    || lr_span_u32(&span, LR_REGION_FLAGS) > 1
		    || lr_span_u8(&span, LR_REGION_CODEC) != LR_REGION_CODEC_ZSTD
		    || !check_filter(image, &span)
		    || !lr_span_is_zero(&span, LR_REGION_RESERVED,
					LR_REGION_BYTES - LR_REGION_RESERVED))
			return fail(ret_problem, LR_ERR_ROOT, root_offset);
		clusters += count;
		logical_bytes += length;
	}
	if (clusters != info->cluster_count || logical_bytes != info->logical_bytes)
		return fail(ret_problem, LR_ERR_ROOT, root_offset);
	return LR_OK;
}

static int check_header_and_metadata(struct tail *tail, const struct footer *footer,
				     struct lr_problem *ret_problem)
{
	uint8_t *part = NULL;
	int code;

	code = get_part(tail, 0, footer->info.header_bytes, footer->header_crc, LR_ERR_HEADER,
			&part, ret_problem);
	free(part);
	part = NULL;
	if (code == LR_OK && tail->source->bytes - footer->info.metadata_offset <= METADATA_NEAR) {
		code = get_part(tail, footer->info.metadata_offset, footer->info.metadata_bytes,
				footer->metadata_crc, LR_ERR_METADATA, &part, ret_problem);
		free(part);
	}
	return code;
}

/* Everything between having the tail and having a usable image. */
static int parse_image(struct lr_image *image, struct tail *tail, struct lr_problem *ret_problem)
{
	uint64_t file_bytes = image->source.bytes;
	struct footer footer = {0};
	int code;

	code = parse_footer(tail->data + (file_bytes - LR_FOOTER_RECORD_BYTES - tail->offset),
			    file_bytes, &footer, ret_problem);
	if (code < 0)
		return code;
	code = check_header_and_metadata(tail, &footer, ret_problem);
	if (code < 0)
		return code;
	code = get_part(tail, footer.root_offset, footer.root_bytes, footer.root_crc, LR_ERR_ROOT,
			&image->root, ret_problem);
	if (code < 0)
		return code;
	image->info = footer.info;
	image->root_bytes = footer.root_bytes;
	image->info.metadata_crc32c = footer.metadata_crc;
	code = parse_root_head(image, footer.root_offset, ret_problem);
	if (code < 0)
		return code;
	code = check_regions(image, footer.root_offset, ret_problem);
	image->index.source = &image->source;
	image->index.cluster_count = image->info.cluster_count;
	image->index.limit = file_bytes - LR_FOOTER_RECORD_BYTES;
	image->index.page_size = image->info.page_size;
	image->index.pages_per_cluster = image->info.cluster_size / image->info.page_size;
	image->index.has_planes = (image->info.critical & LR_FORMAT_PLANES) != 0;
	image->index.entry_bytes =
		LR_ENTRY_HEAD_BYTES
		+ 8
			  * ((image->index.pages_per_cluster + LR_PAGES_PER_WORD - 1)
			     / LR_PAGES_PER_WORD);
	return code;
}

static int read_tail(const struct lr_source *source, struct tail *ret_tail,
		     struct lr_problem *ret_problem)
{
	uint64_t bytes = source->bytes < TAIL_BYTES ? source->bytes : TAIL_BYTES;
	int code;

	if (source->bytes == 0)
		return fail(ret_problem, LR_ERR_EMPTY, 0);
	if (source->bytes < LR_MAGIC_BYTES)
		return fail(ret_problem, LR_ERR_MAGIC, 0);
	ret_tail->source = source;
	ret_tail->head_bytes = source->bytes < HEAD_BYTES ? source->bytes : HEAD_BYTES;
	code = lr_source_read(source, 0, ret_tail->head, ret_tail->head_bytes, ret_problem);
	if (code < 0)
		return code;
	if (memcmp(ret_tail->head, LR_MAGIC, LR_MAGIC_BYTES) != 0)
		return fail(ret_problem, LR_ERR_MAGIC, 0);
	if (source->bytes <= LR_FOOTER_RECORD_BYTES + LR_MAGIC_BYTES)
		return fail(ret_problem, LR_ERR_TRUNCATED, source->bytes);
	ret_tail->offset = source->bytes - bytes;
	ret_tail->bytes_read = bytes + ret_tail->head_bytes;
	return lr_source_read(source, ret_tail->offset, ret_tail->data, bytes, ret_problem);
}

int lr_image_open(const char *path, lr_image **ret_image, struct lr_problem *ret_problem)
{
	struct tail tail;
	lr_image *image;
	int code;

	if (!path || !ret_image)
		return fail(ret_problem, LR_ERR_ARGUMENT, LR_NOWHERE);
	image = calloc(1, sizeof(*image));
	if (!image)
		return fail(ret_problem, LR_ERR_NOMEM, LR_NOWHERE);
	image->users = 1;
	image->source.fd = -1;
	code = lr_source_open(&image->source, path, ret_problem);
	if (code == LR_OK)
		code = read_tail(&image->source, &tail, ret_problem);
	if (code == LR_OK)
		code = parse_image(image, &tail, ret_problem);
	if (code < 0) {
		lr_image_close(image);
		return code;
	}
	image->info.bytes_read_at_open = tail.bytes_read;
	*ret_image = image;
	return LR_OK;
}

void lr_image_close(lr_image *image)
{
	/* Acquire and release: what every user did with the image is done before it is freed. */
	if (!image || atomic_fetch_sub_explicit(&image->users, 1, memory_order_acq_rel) > 1)
		return;
	lr_source_close(&image->source);
	free(image->root);
	free(image);
}

void lr_image_hold(const lr_image *image)
{
	/* The count is not part of what is immutable about an image. */
	atomic_fetch_add_explicit(&((lr_image *)image)->users, 1, memory_order_relaxed);
}

void lr_image_get_info(const lr_image *image, struct lr_image_info *ret_info)
{
	*ret_info = image->info;
}

int lr_image_get_region(const lr_image *image, uint32_t region, struct lr_region_info *ret_info)
{
	struct lr_span span;

	if (region >= image->info.region_count)
		return LR_ERR_NOT_FOUND;
	span = region_entry(image, region);
	*ret_info = (struct lr_region_info){
		.address = lr_span_u64(&span, LR_REGION_ADDRESS),
		.length = lr_span_u64(&span, LR_REGION_LENGTH),
		.first_cluster = lr_span_u64(&span, LR_REGION_FIRST_CLUSTER),
		.cluster_count = lr_span_u64(&span, LR_REGION_CLUSTER_COUNT),
		.protection = lr_span_u32(&span, LR_REGION_PROTECTION),
		.flags = lr_span_u32(&span, LR_REGION_FLAGS),
		.name_bytes = lr_span_u32(&span, LR_REGION_NAME_BYTES),
		.planes = lr_span_u8(&span, LR_REGION_PLANES),
		.name = (const char *)image->root + LR_ROOT_BYTES
			+ (size_t)image->info.region_count * LR_REGION_BYTES
			+ lr_span_u32(&span, LR_REGION_NAME_OFFSET),
	};
	return LR_OK;
}

const void *lr_image_get_table(const lr_image *image, size_t *ret_bytes)
{
	*ret_bytes = image->root_bytes - LR_ROOT_BYTES;
	return image->root + LR_ROOT_BYTES;
}

int64_t lr_image_find_region(const lr_image *image, const char *name, size_t name_bytes)
{
	struct lr_region_info info;

	for (uint32_t i = 0; lr_image_get_region(image, i, &info) == LR_OK; i++)
		if (info.name_bytes == name_bytes && memcmp(info.name, name, name_bytes) == 0)
			return i;
	return LR_ERR_NOT_FOUND;
}

int lr_image_read_raw(const lr_image *image, uint64_t offset, void *ret_data, uint64_t bytes,
		      struct lr_problem *ret_problem)
{
	if (!lr_span_fits(offset, bytes, image->source.bytes))
		return fail(ret_problem, LR_ERR_ARGUMENT, offset);
	return lr_source_read(&image->source, offset, ret_data, bytes, ret_problem);
}

int lr_image_get_files(const lr_image *image, void *ret_data, struct lr_problem *ret_problem)
{
	const struct lr_image_info *info = &image->info;
	lr_zstd *zstd = NULL;
	void *frame;
	int code;

	if (info->files_bytes == 0)
		return LR_ERR_NOT_FOUND;
	frame = malloc(info->files_bytes);
	if (!frame)
		return fail(ret_problem, LR_ERR_NOMEM, LR_NOWHERE);
	code = lr_source_read(&image->source, info->files_offset, frame, info->files_bytes,
			      ret_problem);
	if (code == LR_OK && lr_crc32c(0, frame, info->files_bytes) != info->files_crc32c)
		code = fail(ret_problem, LR_ERR_FILES, info->files_offset);
	if (code == LR_OK && (code = lr_zstd_open(&zstd)) < 0)
		fail(ret_problem, code, LR_NOWHERE);
	if (code == LR_OK
	    && lr_zstd_decode(zstd, frame, info->files_bytes, ret_data, info->files_content_bytes)
		       < 0)
		code = fail(ret_problem, LR_ERR_FILES, info->files_offset);
	lr_zstd_close(zstd);
	free(frame);
	return code;
}

uint32_t lr_image_pages_in_cluster(const struct lr_image *image,
				   const struct lr_region_info *region, uint64_t cluster)
{
	uint64_t begin = (cluster - region->first_cluster) * image->info.cluster_size;
	uint64_t bytes = region->length - begin;

	if (bytes > image->info.cluster_size)
		bytes = image->info.cluster_size;
	return (uint32_t)((bytes + image->info.page_size - 1) / image->info.page_size);
}

int64_t lr_image_region_of_cluster(const struct lr_image *image, uint64_t cluster)
{
	uint32_t low = 0, high = image->info.region_count;

	if (cluster >= image->info.cluster_count)
		return LR_ERR_ARGUMENT;
	/* The last region that begins at or before the cluster, and is not empty: it holds it. */
	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;
		struct lr_span span = region_entry(image, middle);

		if (lr_span_u64(&span, LR_REGION_FIRST_CLUSTER) <= cluster)
			low = middle;
		else
			high = middle;
	}
	return low;
}
