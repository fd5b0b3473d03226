#include "model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"

#define BLOCK_PAGES  32
#define VERSION_MASK 0x7fffffffu
#define LAST_OPS     24

struct slot slots[SLOTS_MAX];
unsigned slot_count;
int thread_count;
struct log *logs;

static uint64_t run_seed;
static const uint64_t zeros[WORDS];

static uint64_t mix(uint64_t value)
{
	return image_random(&value);
}

uint64_t draw(struct actor *actor)
{
	return image_random(&actor->random);
}

void model_open(unsigned count, int threads, uint64_t seed)
{
	pthread_rwlockattr_t attributes;

	run_seed = seed;
	slot_count = count;
	thread_count = threads;
	logs = calloc((size_t)threads, sizeof(*logs));
	if (!logs)
		fail("out of memory");
	pthread_rwlockattr_init(&attributes);
	/* Who reopens a slot would wait for ever behind readers. */
	pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	for (unsigned i = 0; i < count; i++) {
		slots[i].number = i;
		slots[i].keeper = (int)i % threads;
		pthread_rwlock_init(&slots[i].lock, &attributes);
	}
	pthread_rwlockattr_destroy(&attributes);
}

void model_reset(struct slot *slot, uint64_t random)
{
	for (unsigned r = 0; r < SOURCE_REGIONS; r++) {
		struct region *region = &slot->regions[r];

		for (uint64_t i = 0; i < region->count; i++) {
			uint64_t chance = mix(random + r * 1000003 + i / BLOCK_PAGES);
			uint64_t run = mix(chance + i / (1 + chance % 5));
			struct page *page = &region->pages[i];

			/* Three tenths, three, and four. */
			page->class = chance % 10 < 3   ? CLASS_SHARED
				      : chance % 10 < 6 ? CLASS_MIXED
							: CLASS_PRIVATE;
			page->owner = page->class == CLASS_SHARED ? SHARED
				      : page->class == CLASS_MIXED
					      ? (uint8_t)(run % (uint64_t)thread_count)
					      : (uint8_t)(chance / 10 % (uint64_t)thread_count);
			page->at = (uint64_t *)(void *)(region->home + i * PAGE);
			page->expected = source_page(slot->source, r, i);
			page->kind = PAGE_KNOWN;
			page->is_ordinary = false;
			atomic_store(&page->version, 0);
			atomic_store(&page->flags, 0);
			if (source_is_damaged(slot->source, r, i)) {
				page->kind = PAGE_DAMAGED;
				atomic_store(&page->flags, FLAG_IMAGE_GONE);
			}
		}
	}
}

/* ---- The log -------------------------------------------------------------------------- */

/* op 5 bits, slot 4, region 2, page 20, pages 12, detail 8, generation 13. Never 0 but for touching
 * the first page of the first slot: so op counts from 1. */
static uint64_t pack(enum op op, const struct slot *slot, const struct span *span, unsigned detail)
{
	uint64_t what = (uint64_t)op + 1;

	if (slot)
		what |= (uint64_t)slot->number << 5 | (uint64_t)(slot->generation & 0x1fff) << 51;
	if (span)
		what |= (uint64_t)span->region << 9 | span->first << 11 | span->count << 31;
	return what | (uint64_t)(detail & 0xff) << 43;
}

void note(struct actor *actor, enum op op, const struct slot *slot, const struct span *span,
	  unsigned detail)
{
	struct log *log = &logs[actor->thread];
	struct log_entry *entry = &log->entries[log->used++ % LOG_ENTRIES];
	uint64_t what = pack(op, slot, span, detail);

	atomic_store_explicit(&entry->sequence,
			      atomic_fetch_add_explicit(&board->sequence, 1, memory_order_relaxed)
				      + 1,
			      memory_order_relaxed);
	atomic_store_explicit(&entry->what, what, memory_order_relaxed);
	row_begin(actor->row, what);
}

struct found {
	uint64_t sequence;
	uint64_t what;
	int thread;
};

static int by_sequence(const void *a, const void *b)
{
	const struct found *one = a, *other = b;

	return one->sequence < other->sequence ? -1 : one->sequence > other->sequence;
}

static bool concerns(uint64_t what, const struct span *span, uint64_t page)
{
	uint64_t op = (what & 31) - 1, first = what >> 11 & 0xfffff, pages = what >> 31 & 0xfff;

	if ((what >> 5 & 15) != span->slot->number
	    || what >> 51 != (span->slot->generation & 0x1fff) || what == 0)
		return op == OP_FORK;
	if (op == OP_REOPEN || op == OP_FORK)
		return true;
	return (what >> 9 & 3) == span->region && page >= first && page < first + pages;
}

/* The last operations that had to do with a page, of all threads. */
static void print_history(const struct span *span, uint64_t page)
{
	struct found *found = calloc((size_t)thread_count * LOG_ENTRIES, sizeof(*found));
	size_t count = 0;

	if (!found)
		return;
	for (int thread = 0; thread < thread_count; thread++)
		for (unsigned i = 0; i < LOG_ENTRIES; i++) {
			struct log_entry *entry = &logs[thread].entries[i];
			uint64_t what = atomic_load_explicit(&entry->what, memory_order_relaxed);

			if (concerns(what, span, page))
				found[count++] =
					(struct found){atomic_load_explicit(&entry->sequence,
									    memory_order_relaxed),
						       what, thread};
		}
	qsort(found, count, sizeof(*found), by_sequence);
	for (size_t i = count > LAST_OPS ? count - LAST_OPS : 0; i < count; i++) {
		uint64_t what = found[i].what;

		fprintf(stderr, "  #%-9llu thread %2d: %-8s pages %llu to %llu, detail %llu\n",
			(unsigned long long)found[i].sequence, found[i].thread,
			op_names[(what & 31) - 1], (unsigned long long)(what >> 11 & 0xfffff),
			(unsigned long long)((what >> 11 & 0xfffff) + (what >> 31 & 0xfff)),
			(unsigned long long)(what >> 43 & 0xff));
	}
	free(found);
}

/* The mapping that holds an address, or those around the gap that does. */
static void print_mapping(uintptr_t address)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	char line[256], before[256] = "";
	uintptr_t start, end;
	bool is_near = false;

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%zx-%zx ", &start, &end) == 2) {
			if (start > address && !is_near)
				fprintf(stderr, "  not mapped, between\n    %s    %s", before,
					line);
			if (start > address)
				break;
			is_near = address < end;
			if (is_near)
				fprintf(stderr, "  mapped as %s", line);
			memcpy(before, line, sizeof(line));
		} else if (is_near && strncmp(line, "VmFlags", 7) == 0) {
			fprintf(stderr, "    %s", line);
		}
	}
	if (file)
		fclose(file);
}

void mismatch(const struct actor *actor, const struct span *span, uint64_t index,
	      const char *format, ...)
{
	static const char *const classes[] = {"shared", "mixed", "private"};
	static const char *const kinds[] = {"known", "freed", "damaged", "damaged and given up",
					    "gone"};
	const struct page *page = &span->page[index];
	const struct source *source = span->slot->source;
	uint64_t number = span->first + index;
	va_list arguments;

	fail_claim();
	fprintf(stderr, "stress: MISMATCH, seed %llu: ", (unsigned long long)run_seed);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr,
		"\n  seen by pid %d (%s, %s), thread %d, in slot %u, session %u (%s, "
		"%s%s), region %u, page %llu at %p\n",
		getpid(),
		actor->depth == 0   ? "the first process"
		: actor->depth == 1 ? "a child"
				    : "a grandchild",
		actor->owns_all ? "which knows all" : "which knows its own", actor->thread,
		span->slot->number, span->slot->generation,
		span->slot->is_inline ? "inline" : "thread",
		span->slot->fills_all  ? "with fill"
		: span->slot->has_fill ? "with a replay"
				       : "no fill",
		span->slot->is_by_page ? ", by page" : "", span->region, (unsigned long long)number,
		(void *)page->at);
	fprintf(stderr,
		"  clusters of %u, this is page %llu of cluster %llu; image's state %u; owner %d, "
		"%s, "
		"%s%s, flags %u, version %u\n",
		source->image.cluster_size,
		(unsigned long long)(number % (source->image.cluster_size / PAGE)),
		(unsigned long long)(number / (source->image.cluster_size / PAGE)),
		source->image.regions[span->region].states[number], page->owner,
		classes[page->class], kinds[page->kind],
		page->is_ordinary ? ", ordinary memory" : "", atomic_load(&page->flags),
		atomic_load(&page->version));
	print_mapping((uintptr_t)page->at);
	fprintf(stderr, "  the last operations on it:\n");
	print_history(span, number);
	fail_exit();
}

/* ---- Choosing pages ------------------------------------------------------------------- */

static bool is_own(const struct actor *actor, const struct page *page)
{
	return page->owner != SHARED && (actor->owns_all || page->owner == actor->thread);
}

static void choose_region(struct slot *slot, uint64_t random, struct span *span)
{
	/* The second is small. */
	span->slot = slot;
	span->region = random % 16 == 0;
	span->first = random / 16 % slot->regions[span->region].count;
	span->page = &slot->regions[span->region].pages[span->first];
	span->count = 1;
}

bool may_read(const struct actor *actor, const struct page *page)
{
	return is_own(actor, page) ? page->kind != PAGE_GONE : page->class != CLASS_PRIVATE;
}

bool pick_any(const struct actor *actor, struct slot *slot, uint64_t random, struct span *ret_span)
{
	uint64_t tries = 64;

	choose_region(slot, random, ret_span);
	for (; tries > 0; tries--) {
		struct region *region = &slot->regions[ret_span->region];

		ret_span->page = &region->pages[ret_span->first];
		if (may_read(actor, ret_span->page))
			return true;
		ret_span->first = (ret_span->first + 1) % region->count;
	}
	return false;
}

bool pick_own(const struct actor *actor, struct slot *slot, uint64_t random, uint64_t most,
	      enum page_class least, bool want_gone, struct span *ret_span)
{
	struct region *region;
	uint64_t tries = 0, count;
	struct page *page;

	choose_region(slot, random, ret_span);
	region = &slot->regions[ret_span->region];
	for (;; ret_span->first = (ret_span->first + 1) % region->count) {
		page = &region->pages[ret_span->first];
		if (is_own(actor, page) && page->class >= least
		    && (page->kind == PAGE_GONE) == want_gone)
			break;
		if (++tries == region->count)
			return false;
	}
	most = 1 + (random >> 40) % most;
	for (count = 1; count < most && ret_span->first + count < region->count; count++)
		if (page[count].owner != page->owner || page[count].class != page->class
		    || (page[count].kind == PAGE_GONE) != want_gone
		    || page[count].is_ordinary != page->is_ordinary
		    || page[count].at != page->at + count * WORDS)
			break;
	ret_span->page = page;
	ret_span->count = count;
	return true;
}

/* ---- What must be there --------------------------------------------------------------- */

/* Never 0: no word that was written is a word of zeros, nor one of compressible pages. */
static uint64_t tag_of(const struct span *span, uint64_t index)
{
	uint64_t id = (uint64_t)span->slot->number << 60 | (uint64_t)span->region << 56
		      | (uint64_t)span->slot->generation << 24 | (span->first + index);

	return (mix(id) >> 40 | 1) << 40;
}

uint64_t written_word(const struct span *span, uint64_t index, uint32_t version, unsigned word)
{
	return tag_of(span, index) | (uint64_t)(version & VERSION_MASK) << 9 | word;
}

void begin_zero(struct page *page)
{
	atomic_fetch_or(&page->flags, FLAG_MAY_ZERO);
}

void end_zero(struct page *page)
{
	/* Paired with the reader's load before it reads: he may not see the image's bytes again. */
	atomic_fetch_or(&page->flags, FLAG_IMAGE_GONE);
	page->expected = zeros;
	page->kind = PAGE_KNOWN;
}

uint32_t begin_write(struct page *page)
{
	return atomic_fetch_add(&page->version, 1) + 1;
}

void end_write(const struct span *span, uint64_t index, unsigned word, unsigned words,
	       const uint64_t *written)
{
	struct page *page = &span->page[index];
	struct region *region = &span->slot->regions[span->region];
	uint64_t *own = (uint64_t *)(void *)(region->pool + (span->first + index) * PAGE);

	if (words == WORDS)
		atomic_fetch_or(&page->flags, FLAG_IMAGE_GONE);
	else if (page->expected != own)
		memcpy(own, page->expected, PAGE);
	memcpy(own + word, written, words * 8ul);
	page->expected = own;
	page->kind = PAGE_KNOWN;
}

/* A page that was given to MADV_FREE: from the first zero on all is zeros. */
static void check_freed(struct actor *actor, const struct span *span, uint64_t index, unsigned word,
			unsigned words, const uint64_t *seen)
{
	struct page *page = &span->page[index];
	bool is_zero = false;

	for (unsigned i = 0; i < words; i++) {
		if (seen[i] == page->expected[word + i] && (!is_zero || seen[i] == 0))
			continue;
		if (seen[i] != 0)
			mismatch(actor, span, index,
				 "word %u of a page that MADV_FREE was used on: expected %#llx or "
				 "zeros%s, seen %#llx",
				 word + i, (unsigned long long)page->expected[word + i],
				 is_zero ? " for good" : "", (unsigned long long)seen[i]);
		is_zero = true;
	}
	if (is_zero)
		end_zero(page);
}

/* Another thread's page. The flags were loaded before it was read. */
static void check_foreign(struct actor *actor, const struct span *span, uint64_t index,
			  unsigned word, unsigned words, const uint64_t *seen, unsigned flags)
{
	struct page *page = &span->page[index];
	const uint64_t *image = source_page(span->slot->source, span->region, span->first + index);
	uint32_t version = atomic_load(&page->version);
	uint64_t tag = tag_of(span, index);

	/* In a child that was made while others went on, what is known of their pages may be older
	 * than the pages, and newer. */
	if (actor->is_alone && !actor->owns_all) {
		flags = source_is_damaged(span->slot->source, span->region, span->first + index)
				? FLAG_IMAGE_GONE
				: 0;
		version = VERSION_MASK;
	}
	for (unsigned i = 0; i < words; i++) {
		uint64_t written = seen[i] >> 9 & VERSION_MASK;

		if (!(flags & FLAG_IMAGE_GONE) && seen[i] == image[word + i])
			continue;
		if (seen[i] == 0
		    && ((atomic_load(&page->flags) & FLAG_MAY_ZERO)
			|| (actor->is_alone && !actor->owns_all)))
			continue;
		if ((seen[i] & ~((1ull << 40) - 1)) == tag && (seen[i] & 511) == word + i
		    && written >= 1 && written <= version)
			continue;
		mismatch(actor, span, index,
			 "word %u of another thread's page: seen %#llx, which is neither the "
			 "image's %#llx (%s), nor zero (%s), nor written by its owner (%#llx, "
			 "versions up to %u)",
			 word + i, (unsigned long long)seen[i], (unsigned long long)image[word + i],
			 flags & FLAG_IMAGE_GONE ? "which is gone" : "still allowed",
			 atomic_load(&page->flags) & FLAG_MAY_ZERO ? "allowed" : "not allowed",
			 (unsigned long long)tag, version);
	}
}

static void compare(struct actor *actor, const struct span *span, uint64_t index, unsigned word,
		    unsigned words, const uint64_t *seen, unsigned flags)
{
	struct page *page = &span->page[index];
	const uint64_t *expected;

	count(&board->bytes_checked, words * 8ul);
	if (page->owner != SHARED && !is_own(actor, page)) {
		check_foreign(actor, span, index, word, words, seen, flags);
		return;
	}
	expected = page->expected;
	if (page->kind == PAGE_FREED) {
		check_freed(actor, span, index, word, words, seen);
		return;
	}
	if (page->kind == PAGE_DAMAGED)
		mismatch(actor, span, index,
			 "a page of a damaged cluster was read: word %u is %#llx", word,
			 (unsigned long long)seen[0]);
	if (page->kind == PAGE_DAMAGED_GIVEN)
		expected = zeros;
	for (unsigned i = 0; i < words; i++)
		if (seen[i] != expected[word + i])
			mismatch(actor, span, index, "word %u: expected %#llx, seen %#llx",
				 word + i, (unsigned long long)expected[word + i],
				 (unsigned long long)seen[i]);
	if (page->kind == PAGE_DAMAGED_GIVEN)
		end_zero(page);
}

void check_words(struct actor *actor, const struct span *span, uint64_t index, unsigned word,
		 unsigned words, const uint64_t *seen)
{
	compare(actor, span, index, word, words, seen, 0);
}

void check_page(struct actor *actor, const struct span *span, uint64_t index, unsigned word,
		unsigned words)
{
	struct page *page = &span->page[index];
	bool is_damaged = source_is_damaged(span->slot->source, span->region, span->first + index);
	unsigned flags = atomic_load(&page->flags);
	int raised = guard_read(page->at + word, actor->buffer, words);

	if (raised == 0) {
		compare(actor, span, index, word, words, actor->buffer, flags);
		return;
	}
	count(&board->signals, 1);
	/* Another's page: what he knows of it is his alone. */
	if (is_damaged
	    && ((page->owner != SHARED && !is_own(actor, page)) || page->kind == PAGE_DAMAGED
		|| page->kind == PAGE_DAMAGED_GIVEN))
		return;
	mismatch(actor, span, index, "reading word %u raised signal %d", word, raised);
}

void check_fenced(struct actor *actor, const struct span *span, uint64_t index)
{
	struct page *page = &span->page[index];

	if (guard_read(page->at, actor->buffer, WORDS) == 0)
		compare(actor, span, index, 0, WORDS, actor->buffer, 0);
	else
		count(&board->signals, 1);
}
