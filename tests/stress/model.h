/*
 * What each byte of each region must be.
 *
 * Each page of a session's regions has an owner. SHARED pages belong to nobody: all threads read
 * them, nobody changes them, and they read as dumped for as long as the session is there. A
 * thread's own pages are known to it exactly, since nobody else changes them. What another thread's
 * pages hold is known by the word: a word of the image (while the owner has not given it up), zero
 * (once he may have), or one that he wrote, which says for which page it was written. Pages of
 * PRIVATE blocks are not read by others, and so may be moved and unmapped.
 *
 * A slot is a session and what is known of it. Whoever uses it holds its lock for reading, and who
 * closes it and opens another in its place, for writing. Children of fork() are alone and need no
 * locks.
 */
#ifndef LR_STRESS_MODEL_H
#define LR_STRESS_MODEL_H

#include <pthread.h>

#include "board.h"
#include "sources.h"

#define PAGE        4096u
#define WORDS       (PAGE / 8)
#define THREADS_MAX 64
#define SLOTS_MAX   8
#define SHARED      255
#define LOG_ENTRIES 8192

enum page_class { CLASS_SHARED, CLASS_MIXED, CLASS_PRIVATE };

enum page_kind {
	PAGE_KNOWN,         /* reads as `expected` */
	PAGE_FREED,         /* as `expected`, or zeros for good: MADV_FREE */
	PAGE_DAMAGED,       /* its cluster cannot be loaded: a signal */
	PAGE_DAMAGED_GIVEN, /* and then it was given up: a signal, or zeros */
	PAGE_GONE,          /* not mapped */
};

enum page_flag {
	FLAG_MAY_ZERO = 1,   /* set before it is given up for the first time */
	FLAG_IMAGE_GONE = 2, /* set after nothing of the image can be left in it */
};

struct page {
	uint64_t *at;             /* where it is now; changes in PRIVATE blocks only */
	const uint64_t *expected; /* in the image's bytes, the region's pool, or zeros */
	uint8_t owner;            /* a thread, or SHARED */
	uint8_t class;            /* enum page_class */
	_Atomic uint8_t flags;    /* enum page_flag */
	_Atomic uint32_t version; /* of the last write that was begun */
	/* The owner's alone, as `expected` is: not beside what others read. */
	uint8_t kind;     /* enum page_kind */
	bool is_ordinary; /* memory of our own, mapped where the page was */
};

struct region {
	uint8_t *home;
	uint64_t count; /* pages */
	struct page *pages;
	uint8_t *pool; /* room for what was written, page by page */
	bool is_attached;
};

struct slot {
	pthread_rwlock_t lock;
	unsigned number;
	int keeper; /* the thread that closes and opens it */
	uint32_t generation;
	bool is_open;
	bool has_fill;
	bool fills_all; /* and not only what was wanted first */
	bool is_inline; /* who touches answers, and system calls are not served */
	bool is_by_page;
	bool is_recorded;
	uint64_t clusters; /* of the image */
	bool is_inherited; /* the session is a parent's, of which this process is a child */
	const struct source *source;
	lr_session *session;
	struct region regions[SOURCE_REGIONS];
};
extern struct slot slots[SLOTS_MAX];
extern unsigned slot_count;
extern int thread_count;

/* What was done, for the report of a mismatch. Packed so that others may read it at any time. */
struct log_entry {
	_Atomic uint64_t sequence;
	_Atomic uint64_t what;
};
struct log {
	struct log_entry entries[LOG_ENTRIES];
	uint64_t used;
};
extern struct log *logs; /* one a thread */

/* Who acts: a thread, or a child. */
struct actor {
	int thread;      /* whose pages are its own */
	bool owns_all;   /* in a child that was made while nobody changed anything */
	bool is_alone;   /* in a child: locks are nobody's */
	int depth;       /* 0: of the first process */
	uint32_t usable; /* slots, by bit */
	uint32_t pinned; /* of them, those that others use too and that must stay open */
	uint64_t random; /* state */
	struct row *row;
	struct child *children; /* its own that run by themselves (children.c) */
	int pipe[2];
	uint64_t buffer[WORDS];
	uint64_t scratch[WORDS];
};

/* Some pages of a region, next to each other in memory. */
struct span {
	struct slot *slot;
	unsigned region;
	uint64_t first;
	uint64_t count;
	struct page *page; /* the first */
};

void model_open(unsigned count, int threads, uint64_t seed);
uint64_t draw(struct actor *actor);

/* Note an operation in the log and on the board. */
void note(struct actor *actor, enum op op, const struct slot *slot, const struct span *span,
	  unsigned detail);

/* Whether this actor may read a page. */
bool may_read(const struct actor *actor, const struct page *page);
/* A page of any owner that may be read. */
bool pick_any(const struct actor *actor, struct slot *slot, uint64_t random, struct span *ret_span);
/* A run of up to `most` own pages, of a block of at least this class, of kind GONE or of others. */
bool pick_own(const struct actor *actor, struct slot *slot, uint64_t random, uint64_t most,
	      enum page_class least, bool want_gone, struct span *ret_span);

/* Read words of a page and compare them with what must be there. */
void check_page(struct actor *actor, const struct span *span, uint64_t index, unsigned word,
		unsigned words);
/* The same for words that came by another way than by reading: a pipe, another process. */
void check_words(struct actor *actor, const struct span *span, uint64_t index, unsigned word,
		 unsigned words, const uint64_t *seen);
/* A page whose session has ended, in memory that stayed: right, or a signal. */
void check_fenced(struct actor *actor, const struct span *span, uint64_t index);

/* Changes of what is known: to be called by the owner, before and after. */
void begin_zero(struct page *page);
void end_zero(struct page *page);
/* The words that a new version of a page has. */
uint32_t begin_write(struct page *page);
uint64_t written_word(const struct span *span, uint64_t index, uint32_t version, unsigned word);
/* Words were written over what is known. */
void end_write(const struct span *span, uint64_t index, unsigned word, unsigned words,
	       const uint64_t *written);

/* Fill a slot anew: its pages read as dumped. */
void model_reset(struct slot *slot, uint64_t random);

__attribute__((noreturn, format(printf, 4, 5))) void mismatch(const struct actor *actor,
							      const struct span *span,
							      uint64_t index, const char *format,
							      ...);

#endif
