/*
 * What is known of a peer, in a memory file that outlives whoever serves it. Floor 2. It holds the
 * bits of its pages, where its ranges lie by now, and the messages that are being worked on. Pure
 * storage: what these mean is for target.h and keep.h.
 *
 *     header | journal | states of clusters | bits of pages | table | table
 *
 * The file is sealed at one size, so none of this can go away under whoever maps it. But others may
 * write there at any time: nothing read here is used as an index or a length, but after it was
 * copied and checked.
 *
 * One process serves at a time: it has a lock on an open file description of its own, which ends
 * with the last thread that has the descriptor. That is the one that installs pages, and no other:
 * threads of the lowest priority may take long to end where a process is killed.
 */
#ifndef LR_KEPT_H
#define LR_KEPT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "error.h"

#define LR_KEPT_UNMAPPED_MAX  64u
#define LR_KEPT_CHILDREN_MAX  64u
#define LR_KEPT_JOURNAL_BYTES 4096u

/* What a file is for: it fits nothing else. */
struct lr_kept_kind {
	uint8_t digest[32]; /* of the image */
	uint64_t clusters;
	uint64_t pages; /* of the peer's memory, if all regions were in it */
	uint32_t cluster_size;
	uint32_t page_size; /* of the peer's memory */
	uint32_t regions;
	uint32_t pieces_max; /* room in a table */
};

/* As struct lr_piece. */
struct lr_kept_piece {
	uint64_t start;
	uint64_t end;
	uint64_t offset;
	uint32_t region;
	uint32_t untold;
};

/* A child of fork() that only whoever serves has descriptors of: numbers in his table. */
struct lr_kept_child {
	int32_t uffd;
	int32_t state;
	_Atomic uint32_t number; /* of the message that told of it; 0: there is none here */
	uint32_t reserved;
};

/* What a table has besides its pieces, which lie behind it. */
struct lr_kept_table {
	uint64_t told; /* number of the message that was the last to change it */
	uint32_t count;
	uint32_t is_lost;
	uint64_t plain_pages; /* for statistics */
	uint32_t unmapped_count;
	uint32_t reserved;
	struct {
		uint64_t start;
		uint64_t end;
		uint64_t untold;
	} unmapped[LR_KEPT_UNMAPPED_MAX];
	struct lr_kept_child children[LR_KEPT_CHILDREN_MAX];
};

struct lr_kept_header {
	char magic[8];
	uint32_t version;
	_Atomic uint32_t is_settled; /* all of the peer's memory is mapped and registered */
	struct lr_kept_kind kind;
	_Atomic uint64_t told;    /* number of the last message before the journal's */
	_Atomic uint32_t current; /* the table that counts: 1 or 2; 0: none was written yet */
};

struct lr_kept {
	int fd; /* with the lock; -1 when the pager's thread has it */
	uint8_t *memory;
	uint64_t bytes;
	struct lr_kept_kind kind;
	struct lr_kept_header *header;
	void *journal;
	void *states;
	void *settled;
	struct lr_kept_table *tables[2];
	uint64_t told; /* number of the last message that changed a table */
};

/* Make a file: *ret_fd is the caller's. */
int lr_kept_create(const struct lr_kept_kind *kind, int *ret_fd, struct lr_problem *ret_problem);
/* Map one that anyone made, and lock it. LR_ERR_STATE where it is not for this, or is no such file;
 * LR_ERR_BUSY where somebody else serves by it. */
int lr_kept_open(struct lr_kept *kept, int fd, const struct lr_kept_kind *kind,
		 struct lr_problem *ret_problem);
void lr_kept_close(struct lr_kept *kept);
/* Leave the lock to the thread that has a copy of the descriptor in a table of its own. */
void lr_kept_leave_lock(struct lr_kept *kept);

/* Make the file of a child: all that this one has, but with `table`, one of its own two. What could
 * not be loaded may be tried again there. */
int lr_kept_clone(const struct lr_kept *kept, struct lr_kept_table *table, int *ret_fd);
/* The table of a child's file, as lr_kept_clone wrote it, to be changed and written once more. */
bool lr_kept_read_table(int fd, const struct lr_kept *parent, struct lr_kept_table *ret_table);
bool lr_kept_write_table(int fd, const struct lr_kept *parent, const struct lr_kept_table *table);
/* Have some pages of a child be as they are in `settled`, and what is known of their clusters be
 * nothing. */
bool lr_kept_write_bits(int fd, const struct lr_kept *parent, uint64_t first_page, uint64_t pages,
			const _Atomic uint64_t *settled);
/* The children in a file, in its table and in its journal, which nobody serves by. LR_ERR_STATE. As
 * many as fit; returns how many there are. */
int lr_kept_children(int fd, struct lr_kept_child *ret_children, uint32_t room);
/* Put other descriptors in there for the one with this number: LR_ERR_NOT_FOUND. */
int lr_kept_set_child(int fd, const struct lr_kept_child *child);

static inline struct lr_kept_piece *lr_kept_pieces(struct lr_kept_table *table)
{
	return (struct lr_kept_piece *)(table + 1);
}

/* The table that counts, or NULL: as somebody wrote it. */
struct lr_kept_table *lr_kept_current(const struct lr_kept *kept);
/* The other one, to be written and then published. */
struct lr_kept_table *lr_kept_begin(const struct lr_kept *kept);
void lr_kept_publish(struct lr_kept *kept, const struct lr_kept_table *table);

#endif
