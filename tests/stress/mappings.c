/* Operations on how pages are mapped: rights, advice, unmapping, replacing and moving. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guard.h"
#include "operations.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define MAP_KIND (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static const uint64_t zeros[WORDS];

/* Past ThreadSanitizer, which takes mapping for writing and does not see mremap: a place that goes
 * from thread to thread would look like a race. */
static void *map_raw(void *at, uint64_t bytes, int protection, int flags)
{
	return (void *)syscall(SYS_mmap, at, bytes, protection, MAP_KIND | flags, -1, 0l);
}

static int unmap_raw(void *at, uint64_t bytes)
{
	return (int)syscall(SYS_munmap, at, bytes);
}

bool do_protect(struct actor *actor, struct slot *slot, uint64_t random)
{
	bool is_private = random >> 63, none = random >> 62 & 1 && is_private;
	struct span span;
	uint64_t index, word = 1;

	/* Others read mixed pages: those stay readable. */
	if (!pick_own(actor, slot, random, 24, is_private ? CLASS_PRIVATE : CLASS_MIXED, false,
		      &span))
		return false;
	note(actor, OP_PROTECT, slot, &span, none);
	if (mprotect(span.page->at, span.count * PAGE, none ? PROT_NONE : PROT_READ) < 0)
		return false;
	index = random % span.count;
	/* The page may be missing, damaged, anything: it cannot be written. */
	if (guard_write(span.page[index].at, &word, 1) == 0)
		mismatch(actor, &span, index, "was written without the right to");
	count(&board->signals, 1);
	if (none && guard_read(span.page[index].at, &word, 1) == 0)
		mismatch(actor, &span, index, "was read without the right to");
	if (!none)
		check_page(actor, &span, index, 0, WORDS);
	if (mprotect(span.page->at, span.count * PAGE, PROT_READ | PROT_WRITE) < 0)
		mismatch(actor, &span, 0, "mprotect back: errno %d", errno);
	check_page(actor, &span, index, 0, WORDS);
	return true;
}

/* Advice that changes no byte, whatever the kernel makes of it. */
bool do_advise(struct actor *actor, struct slot *slot, uint64_t random)
{
	static const int advices[] = {
		MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE, MADV_COLD,          MADV_PAGEOUT,
		MADV_RANDOM,   MADV_NORMAL,     MADV_WILLNEED, MADV_POPULATE_READ, MADV_MERGEABLE,
	};
	unsigned which = (unsigned)(random >> 32) % (sizeof(advices) / sizeof(advices[0]));
	struct span span;
	bool is_whole = random >> 60 == 0;
	int done;

	if (!pick_any(actor, slot, random, &span))
		return false;
	note(actor, OP_ADVISE, slot, &span, which);
	if (is_whole) {
		/* Also of what is unmapped or moved: then it is refused, half-way. */
		struct region *region = &slot->regions[span.region];

		done = settings.without & 1u << OP_UNMAP
			       ? madvise(region->home, region->count * PAGE, advices[which])
			       : -1;
	} else {
		done = madvise(span.page->at, PAGE, advices[which]);
	}
	check_page(actor, &span, 0, 0, WORDS);
	return done == 0;
}

bool do_lock(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	bool is_locked;

	if (!pick_own(actor, slot, random, 24, CLASS_MIXED, false, &span))
		return false;
	note(actor, OP_LOCK, slot, &span, 0);
	/* Refused beyond RLIMIT_MEMLOCK, and over damaged clusters. */
	is_locked = mlock(span.page->at, span.count * PAGE) == 0;
	check_page(actor, &span, random % span.count, 0, WORDS);
	if (munlock(span.page->at, span.count * PAGE) < 0)
		mismatch(actor, &span, 0, "munlock: errno %d", errno);
	return is_locked;
}

/* Pages are ordinary memory of zeros from now on. */
static void become_ordinary(struct span *span, uint8_t *at)
{
	for (uint64_t i = 0; i < span->count; i++) {
		struct page *page = &span->page[i];

		begin_zero(page);
		end_zero(page);
		page->is_ordinary = true;
		page->at = (uint64_t *)(void *)(at + i * PAGE);
	}
}

/* Give a gap new memory: where it was, if nobody has that, or elsewhere. */
static bool fill_gap(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	void *home, *memory;

	if (!pick_own(actor, slot, random, 24, CLASS_PRIVATE, true, &span))
		return false;
	note(actor, OP_UNMAP, slot, &span, 1);
	home = span.slot->regions[span.region].home + span.first * PAGE;
	memory = map_raw(home, span.count * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE);
	if (memory == MAP_FAILED)
		memory = map_raw(NULL, span.count * PAGE, PROT_READ | PROT_WRITE, 0);
	if (memory == MAP_FAILED)
		return false;
	become_ordinary(&span, memory);
	return true;
}

bool do_unmap(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;

	if (random >> 62 && fill_gap(actor, slot, random))
		return true;
	if (!pick_own(actor, slot, random, 12, CLASS_PRIVATE, false, &span))
		return false;
	note(actor, OP_UNMAP, slot, &span, 0);
	/* Before: afterwards the addresses may be anybody's. */
	for (uint64_t i = 0; i < span.count; i++)
		span.page[i].kind = PAGE_GONE;
	if (unmap_raw(span.page->at, span.count * PAGE) < 0)
		mismatch(actor, &span, 0, "munmap: errno %d", errno);
	return true;
}

bool do_replace(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	void *memory;

	if (!pick_own(actor, slot, random, 12, CLASS_PRIVATE, false, &span))
		return false;
	note(actor, OP_REPLACE, slot, &span, 0);
	memory = map_raw(span.page->at, span.count * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED);
	if (memory == MAP_FAILED)
		mismatch(actor, &span, 0, "mmap(MAP_FIXED): errno %d", errno);
	become_ordinary(&span, memory);
	check_page(actor, &span, random % span.count, 0, WORDS);
	return true;
}

enum way { MOVE_FIXED, MOVE_DONTUNMAP, MOVE_GROW };

/* The old place of a move that does not unmap it: zeros, then gone. */
static void check_old_place(struct actor *actor, const struct span *span, uint64_t *old,
			    uint64_t index)
{
	uint64_t *at = old + index * WORDS;
	bool is_damaged = source_is_damaged(span->slot->source, span->region, span->first + index);
	int raised = guard_read(at, actor->buffer, WORDS);

	if (raised == 0 && memcmp(actor->buffer, zeros, PAGE) != 0)
		mismatch(actor, span, index, "the old place %p of a move that left it has %#llx",
			 (void *)at, (unsigned long long)actor->buffer[0]);
	if (raised && !is_damaged)
		mismatch(actor, span, index, "the old place of a move raised signal %d", raised);
	if (unmap_raw(old, span->count * PAGE) < 0)
		mismatch(actor, span, index, "munmap of the old place: errno %d", errno);
}

/* What a growing move added: zeros, then gone. */
static void check_added(struct actor *actor, const struct span *span, uint64_t *added)
{
	int raised = guard_read(added, actor->buffer, WORDS);

	if (raised || memcmp(actor->buffer, zeros, PAGE) != 0)
		mismatch(actor, span, span->count - 1, "what mremap added: signal %d, or %#llx",
			 raised, (unsigned long long)actor->buffer[0]);
	if (unmap_raw(added, PAGE) < 0)
		mismatch(actor, span, 0, "munmap of what mremap added: errno %d", errno);
}

bool do_move(struct actor *actor, struct slot *slot, uint64_t random)
{
	enum way way = (enum way)((random >> 60) % 3);
	uint64_t *old, *to;
	struct span span;
	void *wanted = NULL;
	uint64_t bytes;

	if (!pick_own(actor, slot, random, 24, CLASS_PRIVATE, false, &span))
		return false;
	note(actor, OP_MOVE, slot, &span, way);
	old = span.page->at;
	bytes = span.count * PAGE;
	if (way == MOVE_FIXED) {
		wanted = map_raw(NULL, bytes, PROT_NONE, 0);
		if (wanted == MAP_FAILED)
			return false;
		to = mremap(old, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, wanted);
	} else if (way == MOVE_DONTUNMAP) {
		to = mremap(old, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	} else {
		to = mremap(old, bytes, bytes + PAGE, MREMAP_MAYMOVE);
	}
	if (to == MAP_FAILED) {
		/* More than one mapping, by other operations: whether wanted was unmapped is not
		 * known then, and it is left. */
		if (errno != EFAULT && errno != EINVAL && errno != ENOMEM)
			mismatch(actor, &span, 0, "mremap: errno %d", errno);
		return false;
	}
	for (uint64_t i = 0; i < span.count; i++)
		span.page[i].at = to + i * WORDS;
	if (way == MOVE_DONTUNMAP)
		check_old_place(actor, &span, old, random % span.count);
	if (way == MOVE_GROW)
		check_added(actor, &span, to + span.count * WORDS);
	check_page(actor, &span, random % span.count, 0, WORDS);
	return true;
}
