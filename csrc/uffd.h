/*
 * The only user of linux/userfaultfd.h: each system call once, errno turned into a return value.
 * Floor 1. Any thread; no state. Constants newer than the installed headers are defined in uffd.c,
 * and the kernel is asked at run time which of them it knows.
 */
#ifndef LR_UFFD_H
#define LR_UFFD_H

#include <stdbool.h>

#include "error.h"

#define LR_UFFD_FEATURE_EVENT_FORK    (1ull << 1)
#define LR_UFFD_FEATURE_EVENT_REMAP   (1ull << 2)
#define LR_UFFD_FEATURE_EVENT_REMOVE  (1ull << 3)
#define LR_UFFD_FEATURE_EVENT_UNMAP   (1ull << 6)
#define LR_UFFD_FEATURE_SIGBUS        (1ull << 7)
#define LR_UFFD_FEATURE_THREAD_ID     (1ull << 8)
#define LR_UFFD_FEATURE_EXACT_ADDRESS (1ull << 11)
#define LR_UFFD_FEATURE_POISON        (1ull << 14)
#define LR_UFFD_FEATURE_MOVE          (1ull << 16)

struct lr_uffd {
	int fd;
	int device; /* /dev/userfaultfd where it came from there, else -1: see lr_uffd_open_like */
	uint32_t privilege; /* LR_PRIVILEGE_FULL or LR_PRIVILEGE_USER_MODE_ONLY */
	uint64_t features;  /* in use */
	bool is_adopted;    /* another process made it, and may do with it what it likes */
	bool reads_no_wait; /* the kernel can be told so at each read; else its maker can make it
			       wait */
	bool tells_quiet;   /* lr_uffd_is_quiet knows */
	/* Copies and zero pages wake nobody: who is to be waked is noted, for later. It is for who
	 * installs now: under loader.h's `busy`, where others install too. */
	bool defers_wakes;
	uint64_t wake_low; /* of who deferred them */
	uint64_t wake_high;
};

/* Get a userfaultfd: /dev/userfaultfd, then the system call, then user-mode-only if `privilege`
 * allows. With those of `features` that the kernel has. Non-blocking and close-on-exec. */
int lr_uffd_open(struct lr_uffd *uffd, uint32_t privilege, uint64_t features,
		 struct lr_problem *ret_problem);
/* Whether a descriptor is a userfaultfd that was initialised. */
int lr_uffd_is_one(int fd);
/* Look what the kernel can do with one that was not opened here: poisoning, whether or not that was
 * asked for, and what stands beside `features`. */
void lr_uffd_look(struct lr_uffd *uffd);
/* Its owner may have made it one whose read blocks, and that cannot be polled: undo that. */
void lr_uffd_undo_blocking(const struct lr_uffd *uffd);
/* One more of the same kind, in a forked child: by the kept device, which works even where the
 * child has fewer rights than whoever opened it, else by the system call. */
int lr_uffd_open_like(struct lr_uffd *uffd, const struct lr_uffd *other,
		      struct lr_problem *ret_problem);
void lr_uffd_close(struct lr_uffd *uffd);
/* Register for MISSING faults: LR_ERR_BUSY where another userfaultfd holds the range,
 * LR_ERR_UNSUPPORTED where the kernel offers no COPY, ZEROPAGE or WAKE for it. */
int lr_uffd_register(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes,
		     struct lr_problem *ret_problem);
/* The same for a range that is registered: nothing changes where it is. *ret_has_zeropage: false
 * for huge pages. LR_ERR_ARGUMENT where there is nothing that could be registered. */
int lr_uffd_check(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes,
		  bool *ret_has_zeropage, struct lr_problem *ret_problem);
/* Whether the address space that it is about is gone. */
bool lr_uffd_is_gone(const struct lr_uffd *uffd, uint64_t host_page);
/* Whether a page of its address space is registered: 1 or 0, or a negative errno. */
int lr_uffd_has(int fd, uint64_t page, uint64_t host_page);
/* Makes missing pages of the range read as zeros: only for a range of which nothing was promised.
 */
void lr_uffd_unregister(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes);

/* These return the bytes done from the start (maybe fewer than asked for), or a negative errno. */
int64_t lr_uffd_copy(struct lr_uffd *uffd, uint64_t to, const void *from, uint64_t bytes);
int64_t lr_uffd_zeropage(struct lr_uffd *uffd, uint64_t to, uint64_t bytes);
int64_t lr_uffd_poison(const struct lr_uffd *uffd, uint64_t to, uint64_t bytes);
/* Not copied: the page frames are taken from private memory of this process, which is empty
 * afterwards. */
int64_t lr_uffd_move(const struct lr_uffd *uffd, uint64_t to, const void *from, uint64_t bytes);
/* False where these are no addresses. Whether anything is mapped there does not matter. */
bool lr_uffd_wake(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes);
/* False while somebody gives up, moves or unmaps registered memory and waits for that to be read,
 * or is about to. `page` is an address in a registered range. Always true before Linux 5.13
 * (`tells_quiet`). */
bool lr_uffd_is_quiet(const struct lr_uffd *uffd, uint64_t page, uint64_t host_page);

enum lr_uffd_kind {
	LR_UFFD_FAULT,
	LR_UFFD_REMOVE,
	LR_UFFD_REMAP,
	LR_UFFD_UNMAP,
	LR_UFFD_FORK,
};

/* What happened to registered memory. Whoever gave memory up or moved it waits in his system call
 * until the message is read, and until then no page can be installed anywhere (-EAGAIN). */
struct lr_uffd_message {
	enum lr_uffd_kind kind;
	uint32_t thread; /* FAULT: who, 0 where the kernel does not tell */
	bool is_write;   /* FAULT */
	uint64_t start;  /* FAULT: the address */
	uint64_t end;    /* REMOVE, UNMAP, REMAP */
	uint64_t to;     /* REMAP: where `start` is now */
	int child;       /* FORK: the child's userfaultfd, in the table of the thread that read */
};
#define LR_UFFD_MESSAGES_MAX  32
#define LR_UFFD_MESSAGE_BYTES 32

/* Read up to `room` messages, at most LR_UFFD_MESSAGES_MAX: their number, 0 where there are none,
 * or a negative errno. Faults come before all else. */
int lr_uffd_read(const struct lr_uffd *uffd, struct lr_uffd_message *ret_messages, int room);
/* The same, into memory of LR_UFFD_MESSAGE_BYTES for each, as the kernel writes them. Where one is
 * all zeros none was written. */
int lr_uffd_read_raw(const struct lr_uffd *uffd, void *ret_raw, int room);
/* In such memory, have a FORK's descriptor be another. */
void lr_uffd_set_child(void *raw, int child);
/* What the kernel wrote: false for a message that was not asked for, and for what no kernel writes:
 * ranges are whole pages, of some length, and their ends do not overflow. */
bool lr_uffd_parse(const void *raw, uint64_t host_page, struct lr_uffd_message *ret_message);

#endif
