#include "kept.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "pageset.h"
#include "uffd.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 8u
#endif

#define VERSION     2u
#define PAGE        4096u
#define TMPFS_MAGIC 0x01021994
#define SEALS       (F_SEAL_SHRINK | F_SEAL_GROW)
/* Of 1 ms: whoever had the lock may be about to end. */
#define LOCK_TRIES 200

static const char magic[8] = "LRSTATE";

struct layout {
	uint64_t journal;
	uint64_t states;
	uint64_t settled;
	uint64_t tables[2];
	uint64_t bytes;
};

static uint64_t round_up(uint64_t bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* By the kind alone: nothing in the file has a say in it. */
static struct layout layout_of(const struct lr_kept_kind *kind)
{
	uint64_t table = round_up(sizeof(struct lr_kept_table)
				  + (uint64_t)kind->pieces_max * sizeof(struct lr_kept_piece));
	struct layout layout = {.journal = round_up(sizeof(struct lr_kept_header))};

	layout.states = layout.journal + LR_KEPT_JOURNAL_BYTES;
	layout.settled = layout.states + round_up(lr_pageset_states_bytes(kind->clusters));
	layout.tables[0] = layout.settled + round_up(lr_pageset_settled_bytes(kind->pages));
	layout.tables[1] = layout.tables[0] + table;
	layout.bytes = layout.tables[1] + table;
	return layout;
}

static int make_file(void)
{
	int fd = (int)syscall(SYS_memfd_create, "lazyrestore-state",
			      MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = (int)syscall(SYS_memfd_create, "lazyrestore-state",
				  MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

int lr_kept_create(const struct lr_kept_kind *kind, int *ret_fd, struct lr_problem *ret_problem)
{
	struct layout layout = layout_of(kind);
	struct lr_kept_header header = {.version = VERSION, .kind = *kind};
	int fd = make_file();

	memcpy(header.magic, magic, sizeof(magic));
	/* (Seals need not be added to what nobody else has yet: but whoever gets it looks for
	 * them.) */
	if (fd < 0 || ftruncate(fd, (off_t)layout.bytes) < 0
	    || pwrite(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header)
	    || fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) < 0) {
		int error = errno;

		if (fd >= 0)
			close(fd);
		return lr_problem_from_errno(ret_problem, error);
	}
	*ret_fd = fd;
	return LR_OK;
}

/* Its size stays what it is, and its pages can be had. */
static bool is_fit(int fd, uint64_t bytes)
{
	struct statfs file_system;
	struct stat file;
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & SEALS) == SEALS && fstat(fd, &file) == 0
	       && (uint64_t)file.st_size == bytes
	       /* Not of huge pages: there may be none when they are wanted. */
	       && fstatfs(fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC;
}

/* An open file description of our own, locked: 0, or an errno. */
static int lock(struct lr_kept *kept, int fd)
{
	struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct timespec pause = {.tv_nsec = 1000000};
	char path[48];

	snprintf(path, sizeof(path), "/proc/thread-self/fd/%d", fd);
	/* Whose file it is may have a lease of it, which he need not give back soon. */
	kept->fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (kept->fd < 0)
		return errno;
	for (int tries = 0; fcntl(kept->fd, F_OFD_SETLK, &all) < 0; tries++) {
		if ((errno != EAGAIN && errno != EACCES) || tries == LOCK_TRIES)
			return errno;
		nanosleep(&pause, NULL);
	}
	return 0;
}

static void place(struct lr_kept *kept, const struct layout *layout)
{
	kept->header = (struct lr_kept_header *)kept->memory;
	kept->journal = kept->memory + layout->journal;
	kept->states = kept->memory + layout->states;
	kept->settled = kept->memory + layout->settled;
	for (int i = 0; i < 2; i++)
		kept->tables[i] = (struct lr_kept_table *)(kept->memory + layout->tables[i]);
}

/* Whether it says that it is for this. */
static bool is_for(const struct lr_kept *kept, const struct lr_kept_kind *kind)
{
	struct lr_kept_header found;

	memcpy(&found, kept->memory, sizeof(found));
	return memcmp(found.magic, magic, sizeof(magic)) == 0 && found.version == VERSION
	       && memcmp(&found.kind, kind, sizeof(*kind)) == 0;
}

int lr_kept_open(struct lr_kept *kept, int fd, const struct lr_kept_kind *kind,
		 struct lr_problem *ret_problem)
{
	struct layout layout = layout_of(kind);
	void *memory;
	int error;

	memset(kept, 0, sizeof(*kept));
	kept->fd = -1;
	kept->kind = *kind;
	if (!is_fit(fd, layout.bytes))
		return lr_problem_set(ret_problem, LR_ERR_STATE, 0, LR_NOWHERE, LR_NOWHERE);
	error = lock(kept, fd);
	if (error) {
		lr_kept_close(kept);
		if (error == EAGAIN || error == EACCES)
			return lr_problem_set(ret_problem, LR_ERR_BUSY, error, LR_NOWHERE,
					      LR_NOWHERE);
		return lr_problem_from_errno(ret_problem, error);
	}
	/* Not by the descriptor that has the lock: a mapping keeps that, too. */
	memory = mmap(NULL, layout.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		error = errno;
		lr_kept_close(kept);
		return lr_problem_from_errno(ret_problem, error);
	}
	kept->memory = memory;
	kept->bytes = layout.bytes;
	place(kept, &layout);
	if (!is_for(kept, kind)) {
		lr_kept_close(kept);
		return lr_problem_set(ret_problem, LR_ERR_STATE, 0, LR_NOWHERE, LR_NOWHERE);
	}
	/* So that the kernel can write to it whatever is going on. A wish. */
	mlock(kept->journal, LR_KEPT_JOURNAL_BYTES);
	return LR_OK;
}

void lr_kept_leave_lock(struct lr_kept *kept)
{
	close(kept->fd);
	kept->fd = -1;
}

void lr_kept_close(struct lr_kept *kept)
{
	if (kept->memory)
		munmap(kept->memory, kept->bytes);
	if (kept->fd >= 0)
		close(kept->fd);
	kept->memory = NULL;
	kept->fd = -1;
}

struct lr_kept_table *lr_kept_current(const struct lr_kept *kept)
{
	/* Acquire: partner of the release in lr_kept_publish. */
	uint32_t current = atomic_load_explicit(&kept->header->current, memory_order_acquire);

	return current == 1 || current == 2 ? kept->tables[current - 1] : NULL;
}

struct lr_kept_table *lr_kept_begin(const struct lr_kept *kept)
{
	return kept->tables[lr_kept_current(kept) == kept->tables[0]];
}

void lr_kept_publish(struct lr_kept *kept, const struct lr_kept_table *table)
{
	atomic_store_explicit(&kept->header->current, table == kept->tables[0] ? 1 : 2,
			      memory_order_release);
}

/* ---- Children ---- */

/* Write `bytes`: what is zeros is left alone, and takes no memory. */
static bool write_sparse(int fd, const uint8_t *from, uint64_t bytes, uint64_t at)
{
	static const uint8_t zeros[PAGE];

	for (uint64_t done = 0, step; done < bytes; done += step) {
		step = bytes - done < PAGE ? bytes - done : PAGE;
		if (memcmp(from + done, zeros, step) != 0
		    && pwrite(fd, from + done, step, (off_t)(at + done)) != (ssize_t)step)
			return false;
	}
	return true;
}

/* A fence of the parent's may be there or not: it is found out. */
static bool write_states(int fd, const uint8_t *from, uint64_t bytes, uint64_t at)
{
	uint8_t block[PAGE];

	for (uint64_t done = 0, step; done < bytes; done += step) {
		step = bytes - done < PAGE ? bytes - done : PAGE;
		for (uint64_t i = 0; i < step; i++)
			block[i] = from[done + i] == LR_STATE_FENCED ? LR_STATE_MISSING
								     : from[done + i];
		if (!write_sparse(fd, block, step, at + done))
			return false;
	}
	return true;
}

static bool write_clone(int fd, const struct lr_kept *kept, const struct layout *layout,
			const struct lr_kept_table *table)
{
	uint64_t bytes = sizeof(*table) + table->count * sizeof(struct lr_kept_piece);
	struct lr_kept_header header = {.version = VERSION, .kind = kept->kind};

	memcpy(header.magic, magic, sizeof(magic));
	atomic_store(&header.is_settled, atomic_load(&kept->header->is_settled));
	atomic_store(&header.current, 1);
	return write_states(fd, kept->states, lr_pageset_states_bytes(kept->kind.clusters),
			    layout->states)
	       && write_sparse(fd, kept->settled, lr_pageset_settled_bytes(kept->kind.pages),
			       layout->settled)
	       && write_sparse(fd, (const uint8_t *)table, bytes, layout->tables[0])
	       && pwrite(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header);
}

int lr_kept_clone(const struct lr_kept *kept, struct lr_kept_table *table, int *ret_fd)
{
	struct layout layout = layout_of(&kept->kind);
	int code = lr_kept_create(&kept->kind, ret_fd, NULL);

	if (code < 0)
		return code;
	if (!write_clone(*ret_fd, kept, &layout, table)) {
		close(*ret_fd);
		return LR_ERR_NOMEM;
	}
	return LR_OK;
}

static bool write_at(int fd, const void *data, size_t bytes, uint64_t at)
{
	return pwrite(fd, data, bytes, (off_t)at) == (ssize_t)bytes;
}

static bool read_at(int fd, void *ret_data, size_t bytes, uint64_t at)
{
	return at <= INT64_MAX && pread(fd, ret_data, bytes, (off_t)at) == (ssize_t)bytes;
}

bool lr_kept_read_table(int fd, const struct lr_kept *parent, struct lr_kept_table *ret_table)
{
	struct layout layout = layout_of(&parent->kind);
	uint64_t at = layout.tables[0] + sizeof(*ret_table);

	return read_at(fd, ret_table, sizeof(*ret_table), layout.tables[0])
	       && ret_table->count <= parent->kind.pieces_max
	       && read_at(fd, lr_kept_pieces(ret_table),
			  ret_table->count * sizeof(struct lr_kept_piece), at);
}

bool lr_kept_write_table(int fd, const struct lr_kept *parent, const struct lr_kept_table *table)
{
	struct layout layout = layout_of(&parent->kind);
	uint64_t bytes = sizeof(*table) + table->count * sizeof(struct lr_kept_piece);

	return write_at(fd, table, bytes, layout.tables[0]);
}

bool lr_kept_write_bits(int fd, const struct lr_kept *parent, uint64_t first_page, uint64_t pages,
			const _Atomic uint64_t *settled)
{
	struct layout layout = layout_of(&parent->kind);
	uint64_t states = lr_pageset_states_bytes(parent->kind.clusters), end = first_page + pages;
	static const uint8_t missing[PAGE];

	for (uint64_t page = first_page, stop; page < end; page = stop) {
		uint64_t at = layout.settled + page / 64 * 8, word, mask;

		stop = page - page % 64 + 64 < end ? page - page % 64 + 64 : end;
		mask = (stop % 64 ? (1ull << stop % 64) - 1 : UINT64_MAX)
		       & ~((1ull << page % 64) - 1);
		if (!read_at(fd, &word, sizeof(word), at))
			return false;
		word = (word & ~mask) | (settled[page / 64] & mask);
		if (!write_at(fd, &word, sizeof(word), at))
			return false;
	}
	/* Of all: it only saves work. */
	for (uint64_t done = 0, step; done < states; done += step) {
		step = states - done < PAGE ? states - done : PAGE;
		if (!write_at(fd, missing, step, layout.states + done))
			return false;
	}
	return true;
}

/* A file of which nothing is known but what it says: it is not mapped, but read. */
struct closed {
	struct lr_kept_header header;
	uint64_t table; /* where it is; 0: there is none */
	uint64_t journal;
	uint64_t table_told;
};

static bool look(int fd, struct closed *ret_closed)
{
	struct lr_kept_header *header = &ret_closed->header;
	struct layout layout;
	struct stat file;
	uint32_t current;

	if (fcntl(fd, F_GET_SEALS) < 0 || fstat(fd, &file) < 0
	    || !read_at(fd, header, sizeof(*header), 0)
	    || memcmp(header->magic, magic, sizeof(magic)) != 0 || header->version != VERSION)
		return false;
	layout = layout_of(&header->kind);
	current = atomic_load(&header->current);
	if (layout.bytes != (uint64_t)file.st_size || current > 2)
		return false;
	ret_closed->journal = layout.journal;
	ret_closed->table = current ? layout.tables[current - 1] : 0;
	ret_closed->table_told = 0;
	return current == 0
	       || read_at(fd, &ret_closed->table_told, sizeof(uint64_t),
			  ret_closed->table + offsetof(struct lr_kept_table, told));
}

static uint64_t place_of(const struct closed *closed, uint32_t slot)
{
	return closed->table + offsetof(struct lr_kept_table, children)
	       + slot * sizeof(struct lr_kept_child);
}

/* The FORK in the journal with this number, or the first after it: where it lies, or 0. */
static uint64_t find_fork(int fd, const struct closed *closed, uint64_t number,
			  struct lr_kept_child *ret_child)
{
	uint64_t at = closed->journal, now = atomic_load(&closed->header.told);
	uint8_t raw[LR_UFFD_MESSAGE_BYTES];

	for (int i = 0; i < LR_UFFD_MESSAGES_MAX; i++, at += sizeof(raw)) {
		struct lr_uffd_message message;

		if (!read_at(fd, raw, sizeof(raw), at) || raw[0] == 0)
			return 0;
		if (!lr_uffd_parse(raw, closed->header.kind.page_size, &message)
		    || message.kind == LR_UFFD_FAULT || message.kind == LR_UFFD_REMOVE)
			continue;
		/* Those that the table has are in it with their children. */
		if (++now < number || now <= closed->table_told || message.kind != LR_UFFD_FORK)
			continue;
		ret_child->uffd = message.child;
		ret_child->state = -1;
		atomic_store(&ret_child->number, (uint32_t)now);
		return at;
	}
	return 0;
}

int lr_kept_children(int fd, struct lr_kept_child *ret_children, uint32_t room)
{
	struct closed closed;
	struct lr_kept_child child = {0};
	uint32_t count = 0;
	uint64_t number = 0;

	if (!look(fd, &closed) || closed.header.kind.page_size == 0)
		return LR_ERR_STATE;
	for (uint32_t i = 0; closed.table && i < LR_KEPT_CHILDREN_MAX; i++) {
		if (!read_at(fd, &child, sizeof(child), place_of(&closed, i)))
			return LR_ERR_STATE;
		if (atomic_load(&child.number) != 0 && count++ < room)
			ret_children[count - 1] = child;
	}
	while (find_fork(fd, &closed, number, &child)) {
		number = (uint64_t)atomic_load(&child.number) + 1;
		if (count++ < room)
			ret_children[count - 1] = child;
	}
	return (int)count;
}

int lr_kept_set_child(int fd, const struct lr_kept_child *child)
{
	uint32_t number = atomic_load(&child->number);
	uint8_t raw[LR_UFFD_MESSAGE_BYTES];
	struct lr_kept_child found;
	struct closed closed;
	uint64_t at;

	if (!look(fd, &closed) || closed.header.kind.page_size == 0)
		return LR_ERR_STATE;
	for (uint32_t i = 0; closed.table && i < LR_KEPT_CHILDREN_MAX; i++) {
		at = place_of(&closed, i);
		if (read_at(fd, &found, sizeof(found), at) && atomic_load(&found.number) == number
		    && number != 0)
			return write_at(fd, child, sizeof(*child), at) ? LR_OK : LR_ERR_STATE;
	}
	at = find_fork(fd, &closed, number, &found);
	if (!at || atomic_load(&found.number) != number || !read_at(fd, raw, sizeof(raw), at))
		return LR_ERR_NOT_FOUND;
	lr_uffd_set_child(raw, child->uffd);
	return write_at(fd, raw, sizeof(raw), at) ? LR_OK : LR_ERR_STATE;
}
