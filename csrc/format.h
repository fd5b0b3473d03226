/*
 * The image format's constants, as docs/format.md fixes them. Floor 1: no functions, no state.
 * Offsets are within the payload of the record that they are named for.
 */
#ifndef LR_FORMAT_H
#define LR_FORMAT_H

#include <stdint.h>

#define LR_FORMAT_VERSION 1u
/* A critical feature: clusters may have their bytes in planes. */
#define LR_FORMAT_PLANES 1ull
/* All critical features that this library knows. */
#define LR_FORMAT_CRITICAL_KNOWN 1ull
/* A compatible feature: the image has a record of files. */
#define LR_FORMAT_FILES 1ull

#define LR_MAGIC            "\x81\xablazyrestore"
#define LR_MAGIC_BYTES      13u
#define LR_HEADER_MAX_BYTES 65536u

#define LR_FOOTER_PREFIX                                                                           \
	"\x81\xa6"                                                                                 \
	"footer"                                                                                   \
	"\xc4\xc0"
#define LR_FOOTER_PREFIX_BYTES 10u
#define LR_FOOTER_BYTES        192u
#define LR_FOOTER_RECORD_BYTES (LR_FOOTER_PREFIX_BYTES + LR_FOOTER_BYTES)

enum lr_footer_field {
	LR_FOOTER_VERSION = 0,
	LR_FOOTER_PAGE_SIZE = 4,
	LR_FOOTER_CLUSTER_SIZE = 8,
	LR_FOOTER_HEADER_BYTES = 12,
	LR_FOOTER_CRITICAL = 16,
	LR_FOOTER_COMPATIBLE = 24,
	LR_FOOTER_ID = 32,
	LR_FOOTER_DIGEST = 48,
	LR_FOOTER_FILE_BYTES = 80,
	LR_FOOTER_ROOT_OFFSET = 88,
	LR_FOOTER_ROOT_SIZE = 96,
	LR_FOOTER_ROOT_CRC = 100,
	LR_FOOTER_METADATA_OFFSET = 104,
	LR_FOOTER_METADATA_SIZE = 112,
	LR_FOOTER_METADATA_CRC = 116,
	LR_FOOTER_HEADER_CRC = 120,
	LR_FOOTER_RESERVED = 124,
	LR_FOOTER_FILES_OFFSET = 160,
	LR_FOOTER_FILES_SIZE = 168,
	LR_FOOTER_FILES_CRC = 172,
	LR_FOOTER_FILES_CONTENT = 176,
	LR_FOOTER_RESERVED_2 = 180,
	LR_FOOTER_CRC = 188,
};

#define LR_ROOT_BYTES 128u

enum lr_root_field {
	LR_ROOT_REGION_COUNT = 0,
	LR_ROOT_NAMES_BYTES = 4,
	LR_ROOT_TREE_HEIGHT = 8,
	LR_ROOT_RESERVED_1 = 12,
	LR_ROOT_CLUSTER_COUNT = 16,
	LR_ROOT_LOGICAL_BYTES = 24,
	LR_ROOT_ZERO_BYTES = 32,
	LR_ROOT_HOLE_BYTES = 40,
	LR_ROOT_DUPLICATE_BYTES = 48,
	LR_ROOT_PAYLOAD_BYTES = 56,
	LR_ROOT_STORED_CLUSTERS = 64,
	LR_ROOT_TREE = 72,
	LR_ROOT_RESERVED_2 = 96,
};

#define LR_REGION_BYTES         96u
#define LR_REGION_CODEC_ZSTD    1u
#define LR_REGION_FILTER_PLANES 1u

enum lr_region_field {
	LR_REGION_ADDRESS = 0,
	LR_REGION_LENGTH = 8,
	LR_REGION_FIRST_CLUSTER = 16,
	LR_REGION_CLUSTER_COUNT = 24,
	LR_REGION_NAME_OFFSET = 32,
	LR_REGION_NAME_BYTES = 36,
	LR_REGION_PROTECTION = 40,
	LR_REGION_FLAGS = 44,
	LR_REGION_CODEC = 48,
	LR_REGION_FILTER = 49,
	LR_REGION_PLANES = 50,
	LR_REGION_RESERVED = 51,
};

#define LR_NODE_HEAD_BYTES  16u
#define LR_NODE_FANOUT      256u
#define LR_NODE_FANOUT_BITS 8u

enum lr_node_field {
	LR_NODE_LEVEL = 0,
	LR_NODE_COUNT = 4,
	LR_NODE_FIRST_CLUSTER = 8,
};

#define LR_REF_BYTES        24u
#define LR_ENTRY_HEAD_BYTES 24u

/* References and leaf entries begin alike; in references the planes are reserved too. */
enum lr_entry_field {
	LR_ENTRY_OFFSET = 0,
	LR_ENTRY_SIZE = 8,
	LR_ENTRY_CRC = 12,
	LR_ENTRY_KIND = 16,
	LR_ENTRY_PLANES = 17,
	LR_ENTRY_RESERVED = 18,
	LR_ENTRY_STATES = 24,
};

enum lr_ref_kind { LR_REF_HOLE = 0, LR_REF_ZERO = 1, LR_REF_NODE = 2 };

#define LR_PAGE_SIZE_MIN         4096u
#define LR_PAGE_SIZE_MAX         65536u
#define LR_CLUSTER_SIZE_MIN      4096u
#define LR_CLUSTER_SIZE_MAX      (2u << 20)
#define LR_PAGES_PER_CLUSTER_MAX (LR_CLUSTER_SIZE_MAX / LR_PAGE_SIZE_MIN)
#define LR_PAGES_PER_WORD        32u
#define LR_REGIONS_MAX           (1u << 24)
#define LR_NAME_BYTES_MAX        4096u
#define LR_TREE_HEIGHT_MAX       8u
#define LR_LENGTH_MAX            (1ull << 62)
#define LR_METADATA_BYTES_MAX    (256u << 20)
#define LR_FILES_BYTES_MAX       (64u << 20)

#endif
