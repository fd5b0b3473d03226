/* What becomes of memory that nobody serves any more. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "attach.h"
#include "mapping.h"
#include "procmem.h"

#define RUNS 64
/* What is longer is fenced by taking the access away: poison takes page tables, and time. */
#define POISON_MAX (1ull << 30)
/* Below it nothing is mapped (vm.mmap_min_addr is 64 KiB). */
#define LOWEST (1ull << 20)

/* Whether a page is of memory that was handed over, where it was then. */
static bool is_ours(const struct lr_attachment *attachment, uint64_t page)
{
	for (uint32_t i = 0; i < attachment->info.region_count; i++) {
		const struct lr_attached *place = &attachment->places[i];

		if (page >= place->start && page - place->start < place->bytes)
			return true;
	}
	return false;
}

/* All that was missing is fenced: what is missing now was given up since, or was moved here before
 * its page had come. */
static void answer(struct lr_attachment *attachment, uint64_t address)
{
	uint64_t page = address & ~(uint64_t)(attachment->host_page - 1);
	int64_t done;

	if (is_ours(attachment, page))
		done = lr_uffd_zeropage(&attachment->uffd, page, attachment->host_page);
	else
		done = lr_uffd_poison(&attachment->uffd, page, attachment->host_page);
	if (done == -ENOTTY)
		mprotect((void *)(uintptr_t)page, attachment->host_page, PROT_NONE);
	/* In any case: what could not be answered now is asked again. */
	lr_uffd_wake(&attachment->uffd, page, attachment->host_page);
}

void lr_attach_drain(struct lr_attachment *attachment, enum lr_drain how)
{
	struct lr_uffd_message messages[LR_UFFD_MESSAGES_MAX];
	int count;

	do {
		count = lr_uffd_read(&attachment->uffd, messages, LR_UFFD_MESSAGES_MAX);
		/* Reading is all that who gave memory up waits for. A fault that is left is asked
		 * again when all is waked. */
		for (int i = 0; i < count && how == LR_DRAIN_ANSWER; i++)
			if (messages[i].kind == LR_UFFD_FAULT)
				answer(attachment, messages[i].start);
	} while (count > 0);
}

/* Take the access to each page away: false where that is to be tried again. */
static bool forbid_pages(uint64_t start, uint64_t end, uint64_t host_page)
{
	struct lr_mapping mapping;
	bool is_done = true;

	for (uint64_t page = start; page < end; page += host_page)
		if (mprotect((void *)(uintptr_t)page, host_page, PROT_NONE) < 0
		    && lr_mapping_find(page, &mapping) == 1 && mapping.is_accessible)
			is_done = false;
	return is_done;
}

/* Nobody may read it. Where the kernel allows no more mappings, all of the region is lost; where
 * parts are unmapped, the others are gone over by themselves. */
static void forbid(const struct lr_attachment *attachment, const struct lr_attached *place,
		   uint64_t start, uint64_t end)
{
	struct timespec pause = {.tv_nsec = 1000000};

	while (mprotect((void *)(uintptr_t)start, end - start, PROT_NONE) < 0
	       && mprotect((void *)(uintptr_t)place->start, place->bytes, PROT_NONE) < 0
	       && !forbid_pages(start, end, attachment->host_page))
		nanosleep(&pause, NULL);
}

/* Poison what is missing of a run; false where the kernel has none. */
static bool poison(struct lr_attachment *attachment, uint64_t start, uint64_t end)
{
	struct timespec pause = {.tv_nsec = 100000};

	if (end - start > POISON_MAX)
		return false;
	while (start < end) {
		int64_t done = lr_uffd_poison(&attachment->uffd, start, end - start);

		if (done == -EAGAIN || done == -ENOMEM || done == 0) {
			lr_attach_drain(attachment, LR_DRAIN_LEAVE);
			if (done == -ENOMEM)
				nanosleep(&pause, NULL);
			continue;
		}
		/* One page is there, or none is mapped, or a mapping ends within: page by page
		 * over it. */
		if (done == -ENOENT && end - start > attachment->host_page)
			done = lr_uffd_poison(&attachment->uffd, start, attachment->host_page);
		if (done == -EEXIST || done == -ENOENT)
			done = (int64_t)attachment->host_page;
		if (done < 0 && done != -EAGAIN)
			return false;
		if (done > 0)
			start += (uint64_t)done;
	}
	return true;
}

static void fence_gap(struct lr_attachment *attachment, const struct lr_attached *place,
		      uint64_t start, uint64_t end)
{
	if (start < end && !poison(attachment, start, end))
		forbid(attachment, place, start, end);
}

/* Fence what has no page. Nobody installs any, so what is missing stays so. */
static void fence_place(struct lr_attachment *attachment, const struct lr_attached *place,
			int pagemap)
{
	uint64_t at = place->start, end = place->start + place->bytes;
	struct lr_page_run runs[RUNS];

	while (at < end) {
		uint64_t next = end;
		int64_t count =
			pagemap < 0 ? LR_ERR_SYSTEM
				    : lr_pagemap_runs(pagemap, at, end, runs, RUNS, &next, NULL);

		/* Nobody can tell what is there: poison passes over it. */
		for (int64_t i = 0; i < count; i++) {
			fence_gap(attachment, place, at, runs[i].start);
			at = runs[i].end;
		}
		if (count < 0)
			next = end;
		fence_gap(attachment, place, at, next);
		at = next;
	}
}

/* Whoever waits, wherever: the memory may have been moved. */
static void wake_everywhere(const struct lr_attachment *attachment)
{
	/* The kernel takes no range that goes beyond all addresses, wherever those end. */
	for (unsigned bits = 56; bits > 32; bits--)
		if (lr_uffd_wake(&attachment->uffd, LOWEST,
				 (1ull << bits) - attachment->host_page - LOWEST))
			return;
}

void lr_attach_fence(struct lr_attachment *attachment)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	lr_attach_drain(attachment, LR_DRAIN_LEAVE);
	pthread_mutex_lock(&attachment->lock);
	attachment->is_fenced = true;
	for (uint32_t i = 0; i < attachment->info.region_count; i++) {
		const struct lr_attached *place = &attachment->places[i];

		if (place->start && !place->is_gone)
			fence_place(attachment, place, pagemap);
	}
	pthread_mutex_unlock(&attachment->lock);
	lr_attach_drain(attachment, LR_DRAIN_LEAVE);
	if (pagemap >= 0)
		close(pagemap);
	/* Also where faults were read by whoever served, and not answered. */
	wake_everywhere(attachment);
}
