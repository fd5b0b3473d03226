/* Operations on what pages hold: writing, by instructions and by system calls, and giving up. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "guard.h"
#include "operations.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* Prepare a new version of some words of a page in the scratch buffer. A page that MADV_FREE was
 * used on is written whole: what the rest of it holds is not known. */
static void prepare(struct actor *actor, const struct span *span, uint64_t random, unsigned *word,
		    unsigned *words)
{
	uint32_t version = begin_write(span->page);

	*word = random % WORDS;
	*words = random >> 20 & 1 ? 1 : 1 + (random >> 24) % (WORDS - *word);
	if (span->page->kind == PAGE_FREED || (random >> 21 & 3) == 0) {
		*word = 0;
		*words = WORDS;
	}
	for (unsigned i = 0; i < *words; i++)
		actor->scratch[i] = written_word(span, 0, version, *word + i);
}

/* Words of a page that could not be written must be in a damaged cluster; one that could, not. */
static void account(struct actor *actor, const struct span *span, unsigned word, unsigned words,
		    bool is_done, const char *how)
{
	struct page *page = span->page;

	if (is_done && page->kind == PAGE_DAMAGED)
		mismatch(actor, span, 0, "a page of a damaged cluster was written by %s", how);
	if (!is_done && page->kind != PAGE_DAMAGED && page->kind != PAGE_DAMAGED_GIVEN)
		mismatch(actor, span, 0, "writing words %u to %u by %s failed", word, word + words,
			 how);
	if (!is_done) {
		count(&board->signals, 1);
		return;
	}
	if (page->kind == PAGE_DAMAGED_GIVEN)
		end_zero(page);
	end_write(span, 0, word, words, actor->scratch);
}

bool do_write(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	unsigned word, words;
	bool is_done;

	if (!pick_own(actor, slot, random, 1, CLASS_MIXED, false, &span))
		return false;
	prepare(actor, &span, draw(actor), &word, &words);
	note(actor, OP_WRITE, slot, &span, words == WORDS);
	is_done = guard_write(span.page->at + word, actor->scratch, words) == 0;
	account(actor, &span, word, words, is_done, "an instruction");
	return true;
}

/* Past the sanitizers: other threads may read the page meanwhile, as atomics. */
static ssize_t write_lazy(const struct actor *actor, const void *lazy, size_t bytes)
{
	return syscall(SYS_write, actor->pipe[1], lazy, bytes);
}

static ssize_t read_lazy(const struct actor *actor, void *lazy, size_t bytes)
{
	return syscall(SYS_read, actor->pipe[0], lazy, bytes);
}

/* A system call gave EFAULT. Where faults are answered by who touches, that is what it gets for a
 * page that is missing: touched, it is there. False where it cannot have been missing, or where
 * that need not help. */
static bool bring(struct actor *actor, const struct span *span)
{
	struct page *page = span->page;

	if (!span->slot->is_inline || page->is_ordinary || page->kind == PAGE_DAMAGED
	    || page->kind == PAGE_DAMAGED_GIVEN)
		return false;
	count(&board->bad_addresses, 1);
	check_page(actor, span, 0, 0, WORDS);
	return true;
}

/* Whether a page was to be there from the moment that the fill had come to its end. */
static bool is_filled(const struct actor *actor, const struct span *span)
{
	const struct slot *slot = span->slot;

	return slot->fills_all && !(actor->is_alone && slot->is_inherited)
	       && span->page->owner == SHARED
	       && slot->source->image.regions[span->region].states[span->first] == LR_PAGE_DATA
	       && lr_session_wait(slot->session, 0) == LR_OK;
}

/* write(2) of a page of lazy memory, and what came out of the pipe. */
static bool pipe_out(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	ssize_t put, got = 0;
	struct page *page;
	bool was_filled;

	/* Of one's own or a shared one: others may change theirs meanwhile. */
	if (!pick_any(actor, slot, random, &span))
		return false;
	page = span.page;
	if (page->owner != SHARED && !actor->owns_all && page->owner != actor->thread)
		return false;
	note(actor, OP_PIPE, slot, &span, 0);
	was_filled = is_filled(actor, &span);
	put = write_lazy(actor, page->at, PAGE);
	if (put < 0 && errno == EFAULT && !was_filled && bring(actor, &span)) {
		put = write_lazy(actor, page->at, PAGE);
		/* The kernel may have taken it again. */
		if (put < 0 && page->kind == PAGE_FREED)
			return false;
	}
	if (put < 0 && errno != EFAULT)
		fail("write of a lazy page: errno %d", errno);
	if (put < (ssize_t)PAGE && page->kind != PAGE_DAMAGED && page->kind != PAGE_DAMAGED_GIVEN)
		mismatch(actor, &span, 0, "write(2) took %zd bytes, errno %d", put, errno);
	while (got < put) {
		ssize_t more =
			read(actor->pipe[0], (uint8_t *)actor->buffer + got, (size_t)(put - got));

		if (more <= 0)
			fail("read of a pipe");
		got += more;
	}
	if (put > 0)
		check_words(actor, &span, 0, 0, (unsigned)put / 8, actor->buffer);
	return true;
}

/* read(2) into a page of lazy memory. */
static bool pipe_in(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	unsigned word, words;
	ssize_t got, rest;
	bool is_done;

	if (!pick_own(actor, slot, random, 1, CLASS_MIXED, false, &span))
		return false;
	prepare(actor, &span, draw(actor), &word, &words);
	note(actor, OP_PIPE, slot, &span, 1);
	if (write(actor->pipe[1], actor->scratch, words * 8ul) != (ssize_t)(words * 8))
		fail("write to a pipe");
	got = read_lazy(actor, span.page->at + word, words * 8ul);
	/* What it did not take is in the pipe still. */
	if (got < 0 && errno == EFAULT && bring(actor, &span))
		got = read_lazy(actor, span.page->at + word, words * 8ul);
	if (got < 0 && errno != EFAULT)
		fail("read into a lazy page: errno %d", errno);
	is_done = got == (ssize_t)(words * 8);
	/* Of a damaged page nothing can have been taken. */
	for (rest = (ssize_t)(words * 8) - (got > 0 ? got : 0); rest > 0;) {
		ssize_t more = read(actor->pipe[0], actor->buffer, (size_t)rest);

		if (more <= 0)
			fail("read of a pipe");
		rest -= more;
	}
	if (!is_done && slot->is_inline && span.page->kind == PAGE_FREED)
		return false;
	account(actor, &span, word, words, is_done, "read(2)");
	return true;
}

bool do_pipe(struct actor *actor, struct slot *slot, uint64_t random)
{
	return random >> 63 ? pipe_out(actor, slot, random) : pipe_in(actor, slot, random);
}

static int advise(const struct span *span, int advice, bool by_process)
{
	struct iovec range = {span->page->at, span->count * PAGE};
	long done;
	int pidfd;

	if (!by_process)
		return madvise(range.iov_base, range.iov_len, advice);
	pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	done = syscall(SYS_process_madvise, pidfd, &range, 1ul, advice, 0u);
	close(pidfd);
	/* Linux before 6.13 allows only some advice this way. */
	if (done < 0 && (errno == EINVAL || errno == ENOSYS || errno == EPERM))
		return madvise(range.iov_base, range.iov_len, advice);
	return done == (long)range.iov_len ? 0 : -1;
}

bool do_dontneed(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	bool by_process = random >> 62 == 0;

	if (!pick_own(actor, slot, random, 24, CLASS_MIXED, false, &span))
		return false;
	note(actor, OP_DONTNEED, slot, &span, by_process);
	for (uint64_t i = 0; i < span.count; i++)
		begin_zero(&span.page[i]);
	if (advise(&span, MADV_DONTNEED, by_process) < 0)
		mismatch(actor, &span, 0, "MADV_DONTNEED of %llu pages: errno %d",
			 (unsigned long long)span.count, errno);
	for (uint64_t i = 0; i < span.count; i++) {
		struct page *page = &span.page[i];

		if (page->kind == PAGE_DAMAGED || page->kind == PAGE_DAMAGED_GIVEN)
			page->kind = PAGE_DAMAGED_GIVEN;
		else
			end_zero(page);
	}
	if (random >> 61 & 1)
		check_page(actor, &span, random % span.count, 0, WORDS);
	return true;
}

bool do_free(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;

	if (!pick_own(actor, slot, random, 24, CLASS_MIXED, false, &span))
		return false;
	note(actor, OP_FREE, slot, &span, random >> 62);
	for (uint64_t i = 0; i < span.count; i++)
		begin_zero(&span.page[i]);
	if (madvise(span.page->at, span.count * PAGE, MADV_FREE) < 0)
		mismatch(actor, &span, 0, "MADV_FREE of %llu pages: errno %d",
			 (unsigned long long)span.count, errno);
	for (uint64_t i = 0; i < span.count; i++) {
		struct page *page = &span.page[i];

		if (page->kind == PAGE_DAMAGED || page->kind == PAGE_DAMAGED_GIVEN)
			page->kind = PAGE_DAMAGED_GIVEN;
		else
			page->kind = PAGE_FREED;
	}
	/* Takes what was freed, also where there is no swap. */
	if (random >> 62 & 1)
		madvise(span.page->at, span.count * PAGE, MADV_PAGEOUT);
	if (random >> 61 & 1)
		check_page(actor, &span, random % span.count, 0, WORDS);
	return true;
}
