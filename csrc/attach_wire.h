/*
 * What a process and the service that restores its memory say to each other, over a unix stream
 * socket, in this order (docs/serving.md; lazyrestore/_serve/attaching.py is the other side). All
 * numbers are little-endian. Floor 1.
 *
 *     LRATTACH ->
 *                 <- LRREGION, its regions, their names; with the flag, LRMETADA and its bytes
 *     LRRANGES, its ranges; the first byte carries [userfaultfd], or [userfaultfd, state] ->
 *                 <- LRSERVED, which carries [state]
 *                 <- LRCOMPLT, when all was loaded and is no longer registered
 *
 * Instead of its next message the service may send LRREFUSE and a text, and close.
 */
#ifndef LR_ATTACH_WIRE_H
#define LR_ATTACH_WIRE_H

#include <stdint.h>

#define LR_WIRE_VERSION     1u
#define LR_WIRE_RESUMES     1u /* flags of LRATTACH: it was served before */
#define LR_WIRE_METADATA    2u /* metadata is wanted too */
#define LR_WIRE_MAGIC_BYTES 8u

#define LR_WIRE_ATTACH   "LRATTACH"
#define LR_WIRE_REGIONS  "LRREGION"
#define LR_WIRE_DETAILS  "LRMETADA"
#define LR_WIRE_REFUSE   "LRREFUSE"
#define LR_WIRE_RANGES   "LRRANGES"
#define LR_WIRE_SERVED   "LRSERVED"
#define LR_WIRE_COMPLETE "LRCOMPLT"

/* What no service of ours sends more of. */
#define LR_WIRE_REGIONS_MAX  (1u << 20)
#define LR_WIRE_NAMES_MAX    (64u << 20)
#define LR_WIRE_METADATA_MAX (64u << 20)
#define LR_WIRE_TEXT_MAX     4096u

/* All messages begin with so much. */
struct lr_wire_head {
	char magic[LR_WIRE_MAGIC_BYTES];
	uint32_t first;  /* the version; of LRREFUSE: enum lr_refusal */
	uint32_t second; /* flags; or how many regions, ranges or bytes of text follow */
};

/* Of LRREGION, behind the head. */
struct lr_wire_table {
	uint32_t page_size;
	uint32_t cluster_size;
	uint64_t names_bytes;
	uint8_t digest[32];
};

struct lr_wire_region {
	uint64_t address;
	uint64_t length;
	uint32_t protection;
	uint32_t name_bytes;
	uint64_t name_offset; /* in the names */
};

/* Of LRRANGES, behind the head. */
struct lr_wire_ranges {
	uint32_t page_size; /* of the memory */
	uint32_t reserved;
};

struct lr_wire_range {
	uint64_t address;
	uint64_t bytes;
	uint64_t offset; /* in the region */
	uint32_t region;
	uint32_t reserved;
};

/* Of LRMETADA, behind the head (whose second number is 0). */
struct lr_wire_metadata {
	uint64_t bytes; /* a msgpack array, one map a region */
};

_Static_assert(sizeof(struct lr_wire_head) == 16, "as on the wire");
_Static_assert(sizeof(struct lr_wire_table) == 48, "as on the wire");
_Static_assert(sizeof(struct lr_wire_region) == 32, "as on the wire");
_Static_assert(sizeof(struct lr_wire_ranges) == 8, "as on the wire");
_Static_assert(sizeof(struct lr_wire_range) == 32, "as on the wire");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structures are sent as they lie");

#endif
