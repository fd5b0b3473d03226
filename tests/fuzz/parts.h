/*
 * An image as its parts, for the mutator: found leniently (it may be damaged), spliced so that
 * offsets go on meaning what they meant, and sealed, so that a change gets past the checksums.
 */
#ifndef LR_FUZZ_PARTS_H
#define LR_FUZZ_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum part_kind {
	PART_HEADER,
	PART_CLUSTER,
	PART_NODE,
	PART_METADATA,
	PART_FILES,
	PART_ROOT,
	PART_FOOTER,
	PART_KINDS,
};

struct part {
	enum part_kind kind;
	size_t record; /* where its record begins */
	size_t offset; /* its payload */
	size_t bytes;
};

#define PARTS_MAX   1024u
#define PARTS_BYTES (1u << 20) /* of an image that is taken apart */

struct parts {
	uint8_t *data; /* PARTS_BYTES of room */
	size_t bytes;
	struct part all[PARTS_MAX];
	unsigned count;
	const struct part *root;   /* NULL where there is none */
	const struct part *footer; /* the same */
	uint32_t entry_bytes;      /* of a leaf, as the footer's sizes have it */
};

uint64_t parts_get(const uint8_t *from, unsigned width_bytes);
void parts_put(uint8_t *to, uint64_t value, unsigned width_bytes);

/* Find the parts of parts->data; again after each change of a length. */
void parts_find(struct parts *parts);

/* Take `remove` bytes out of a part's payload and put others in; what points behind it follows.
 * False where that cannot be. */
bool parts_splice(struct parts *parts, unsigned number, size_t at, size_t remove,
		  const uint8_t *insert, size_t insert_bytes);

/* The same between records, where a part's record begins. */
bool parts_insert_record(struct parts *parts, unsigned number, const uint8_t *record, size_t bytes);
bool parts_remove_record(struct parts *parts, unsigned number);

/* Make numbers agree that follow from others: region table, tree height, the nodes' heads. */
void parts_recount(struct parts *parts);

/* Make the checksums right, from the payloads up to the footer. With a `random` state not NULL one
 * in 32 is left as it is. */
void parts_seal(struct parts *parts, uint64_t *random);

uint64_t parts_random(uint64_t *state);

#endif
