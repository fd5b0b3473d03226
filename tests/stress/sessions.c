/* Sessions of a stress run: opening, closing and asking them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "operations.h"
#include "session.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define MAP_KIND (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static void *map_memory(void *wanted, uint64_t bytes)
{
	void *memory = mmap(wanted, bytes, PROT_READ | PROT_WRITE,
			    MAP_KIND | (wanted ? MAP_FIXED_NOREPLACE : 0), -1, 0);

	if (wanted && memory != wanted && memory != MAP_FAILED) {
		munmap(memory, bytes);
		memory = MAP_FAILED;
	}
	return memory;
}

/* Memory of our own for a region: where the last session had it, if that can be had. */
static void attach(struct slot *slot, unsigned number, uint8_t *last_home)
{
	struct region *region = &slot->regions[number];
	uint64_t bytes = region->count * PAGE;
	struct lr_problem problem;
	void *memory = MAP_FAILED;
	int code;

	if (last_home)
		memory = map_memory(last_home, bytes);
	if (memory == MAP_FAILED)
		memory = map_memory(NULL, bytes);
	if (memory == MAP_FAILED)
		fail("no memory for a region");
	code = lr_session_attach(slot->session, number, memory, &problem);
	if (code < 0)
		fail("lr_session_attach: %s (errno %d)", lr_error_name(code), problem.os_error);
	region->home = memory;
	region->is_attached = true;
}

static void map(struct slot *slot, unsigned number)
{
	struct lr_problem problem;
	void *memory;
	int code = lr_session_map(slot->session, number, &memory, &problem);

	if (code < 0)
		fail("lr_session_map: %s (errno %d)", lr_error_name(code), problem.os_error);
	slot->regions[number].home = memory;
	slot->regions[number].is_attached = false;
}

static void make_room(struct region *region, uint64_t pages)
{
	free(region->pages);
	if (region->pool)
		munmap(region->pool, region->count * PAGE);
	region->count = pages;
	region->pages = calloc(pages, sizeof(*region->pages));
	region->pool = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_KIND, -1, 0);
	if (!region->pages || region->pool == MAP_FAILED)
		fail("out of memory");
}

static void open_session(struct slot *slot, uint64_t random)
{
	struct lr_session_options options = {0};
	struct lr_problem problem;
	lr_image *opened;
	int code;

	slot->is_inline = (random >> 32) % 100 < settings.inline_percent;
	slot->is_by_page = (random >> 40 & 3) == 0;
	slot->is_recorded = random >> 42 & 1;
	options.privilege = settings.user_mode ? LR_PRIVILEGE_USER_MODE_ONLY : LR_PRIVILEGE_FULL;
	options.trace_records = random >> 9 & 1 ? 64 : 0;
	options.fault_mode = slot->is_inline ? LR_FAULT_INLINE : LR_FAULT_THREAD;
	options.granularity = slot->is_by_page ? LR_GRANULARITY_PAGE : LR_GRANULARITY_CLUSTER;
	options.record = slot->is_recorded;
	/* A handle of its own, which is closed at once: the session holds the image. */
	if (lr_image_open(slot->source->image.path, &opened, &problem) < 0)
		fail("lr_image_open: %s", lr_error_name(problem.code));
	code = lr_session_open(opened, &options, &slot->session, &problem);
	lr_image_close(opened);
	if (code < 0)
		fail("lr_session_open: %s (errno %d)", lr_error_name(code), problem.os_error);
	/* The machine is busy with us: else it would hardly ever be tried. */
	slot->session->pager.near.ignores_load = random >> 43 & 1;
	count(&board->sessions, 1);
	count(&board->in_thread, slot->is_inline);
	count(&board->by_page, slot->is_by_page);
	count(&board->recorded, slot->is_recorded);
}

/* Some clusters that are wanted first: as a working set is, in runs, and some of them twice. */
static uint64_t *choose_first(struct actor *actor, const struct slot *slot, uint64_t most)
{
	uint64_t *first = calloc(most, sizeof(*first));

	if (!first)
		fail("out of memory");
	for (uint64_t i = 0; i < most; i++)
		first[i] = i > 0 && draw(actor) % 4 ? (first[i - 1] + 1) % slot->clusters
						    : draw(actor) % slot->clusters;
	return first;
}

static void start_fill(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct lr_fill_options options = {
		.threads = random >> 44 & 3,
		.is_awaited = random >> 46 & 1,
	};
	uint64_t *first = NULL;
	int code;

	if (random >> 47 & 1) {
		options.first_count =
			1 + draw(actor) % (slot->clusters < 300 ? slot->clusters : 300);
		first = choose_first(actor, slot, options.first_count);
		options.first = first;
		options.first_only = (random >> 48 & 3) == 0;
	}
	code = lr_session_fill(slot->session, random >> 50 & 1 || first ? &options : NULL);
	if (code < 0)
		fail("lr_session_fill: %s", lr_error_name(code));
	free(first);
	slot->fills_all = !options.first_only;
	count(&board->fills, 1);
	count(&board->replayed, first != NULL);
}

void slot_open(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct lr_image_info info;

	slot->generation++;
	slot->source = &sources[random % source_count];
	lr_image_get_info(slot->source->opened, &info);
	slot->clusters = info.cluster_count;
	slot->has_fill = settings.with_fill && random >> 8 & 1;
	slot->fills_all = false;
	open_session(slot, random);
	for (unsigned r = 0; r < SOURCE_REGIONS; r++) {
		struct region *region = &slot->regions[r];
		uint64_t length = slot->source->image.regions[r].length;

		make_room(region, length / PAGE + (length % PAGE != 0));
		if (random >> (16 + r) & 1)
			attach(slot, r, region->home);
		else
			map(slot, r);
	}
	model_reset(slot, random);
	slot->is_open = true;
	slot->is_inherited = false;
	if (slot->has_fill)
		start_fill(actor, slot, random);
}

/* What was moved away is ours to unmap. What we mapped in a region's place stays, for now. */
static void unmap_moved(struct slot *slot)
{
	for (unsigned r = 0; r < SOURCE_REGIONS; r++)
		for (uint64_t i = 0; i < slot->regions[r].count; i++) {
			struct page *page = &slot->regions[r].pages[i];

			if (page->kind == PAGE_GONE
			    || (uint8_t *)page->at == slot->regions[r].home + i * PAGE)
				continue;
			if (munmap(page->at, PAGE) < 0)
				fail("munmap of a moved page");
			page->kind = PAGE_GONE;
		}
}

/* Unmap what is left of a region: attached memory, or only what we mapped in its place. */
static void unmap_home(struct region *region, bool ordinary_only)
{
	for (uint64_t i = 0, end; i < region->count; i = end) {
		end = i + 1;
		if (region->pages[i].kind == PAGE_GONE
		    || (ordinary_only && !region->pages[i].is_ordinary))
			continue;
		while (end < region->count && region->pages[end].kind != PAGE_GONE
		       && !(ordinary_only && !region->pages[end].is_ordinary))
			end++;
		if (munmap(region->home + i * PAGE, (end - i) * PAGE) < 0)
			fail("munmap of a region");
		for (; i < end; i++)
			region->pages[i].kind = PAGE_GONE;
	}
}

/* After the session's end: attached memory still has what was loaded, and the rest gives a signal;
 * and what we mapped in a region's place is still there. */
static void check_left(struct actor *actor, struct slot *slot, unsigned number)
{
	struct region *region = &slot->regions[number];
	struct actor all = *actor;

	/* Nobody else is here: the slot is locked. (A child that does not know all has forgotten
	 * the rest.) */
	all.owns_all = all.owns_all || !all.is_alone;
	for (uint64_t i = 0; i < region->count; i++) {
		struct span span = {slot, number, i, 1, &region->pages[i]};

		if (span.page->kind == PAGE_GONE)
			continue;
		if (span.page->is_ordinary)
			check_page(&all, &span, 0, 0, WORDS);
		else if (region->is_attached)
			check_fenced(&all, &span, 0);
	}
}

static void gather(struct slot *slot)
{
	struct lr_session_stats stats;

	lr_session_get_stats(slot->session, &stats);
	count(&board->faults, stats.faults);
	count(&board->pages_copied, stats.pages_copied);
	count(&board->pages_zeroed, stats.pages_zeroed);
	count(&board->pages_moved, slot->session->pager.loader.pages_moved);
	count(&board->near_rounds, atomic_load(&slot->session->pager.near.rounds));
	for (unsigned r = 0; r < SOURCE_REGIONS; r++)
		count(&board->released,
		      lr_range_state(&slot->session->target.ranges[r]) == LR_RANGE_PLAIN);
	count(&board->damaged_clusters, stats.errors);
	if (stats.errors && !slot->source->has_damage) {
		struct lr_load_error error = {0};

		lr_session_get_errors(slot->session, 0, &error, 1);
		fail("a session of an image without damage has %llu errors: %s in cluster %llu, "
		     "errno %d",
		     (unsigned long long)stats.errors, lr_error_name(error.code),
		     (unsigned long long)error.cluster, error.os_error);
	}
}

/* Each cluster once, in order of time, and none that is not there. Nobody touches any more. */
static void check_record(const struct slot *slot)
{
	struct lr_touched touched[64];
	uint8_t *is_seen = calloc(slot->clusters, 1);
	uint64_t at = 0, got;

	if (!is_seen)
		fail("out of memory");
	while ((got = lr_session_get_touched(slot->session, at, touched, 64)) > 0)
		for (uint64_t i = 0; i < got; i++, at++) {
			uint64_t cluster = touched[i].cluster;

			/* What the parent's threads were noting when it was made. */
			if (cluster == UINT64_MAX && slot->is_inherited)
				continue;
			if (cluster >= slot->clusters || is_seen[cluster]++)
				fail("cluster %llu of %llu is recorded, as number %llu",
				     (unsigned long long)cluster,
				     (unsigned long long)slot->clusters, (unsigned long long)at);
		}
	free(is_seen);
	if (at > (slot->is_recorded ? slot->clusters : 0))
		fail("%llu clusters are recorded of %llu", (unsigned long long)at,
		     (unsigned long long)slot->clusters);
	count(&board->touched, at);
}

void slot_close(struct actor *actor, struct slot *slot, uint64_t random)
{
	bool is_orderly = random & 1;

	if (!slot->is_open)
		return;
	unmap_moved(slot);
	gather(slot);
	check_record(slot);
	for (uint32_t r = 0; r < SOURCE_REGIONS; r++) {
		struct region *region = &slot->regions[r];

		if (!is_orderly || !region->is_attached)
			continue;
		if (lr_session_suspend(slot->session, r) < 0)
			fail("lr_session_suspend");
		unmap_home(region, false);
		if (lr_session_detach(slot->session, r) < 0)
			fail("lr_session_detach");
	}
	lr_session_close(slot->session);
	slot->session = NULL;
	for (unsigned r = 0; r < SOURCE_REGIONS; r++) {
		check_left(actor, slot, r);
		unmap_home(&slot->regions[r], !slot->regions[r].is_attached);
	}
	slot->is_open = false;
}

bool do_populate(struct actor *actor, struct slot *slot, uint64_t random)
{
	unsigned number = random % 8 == 0;
	struct span span = {.slot = slot, .region = number};
	uint64_t length = slot->source->image.regions[number].length;
	uint64_t offset = (random >> 8) % length;
	uint64_t bytes = 1 + (random >> 32) % (256u << 10), done;
	int64_t timeout_ns = random >> 60 & 1 ? -1 : (int64_t)(random >> 50 & 1023) * 1000;
	struct lr_problem problem = {0};
	int code;

	if (bytes > length - offset)
		bytes = length - offset;
	span.first = offset / PAGE;
	span.count = bytes / PAGE + 1;
	note(actor, OP_POPULATE, slot, &span, timeout_ns < 0);
	code = lr_session_populate(slot->session, number, offset, bytes, timeout_ns, &done,
				   &problem);
	if (code == LR_ERR_TIMEOUT && timeout_ns >= 0)
		return false;
	if (code < 0 && !(slot->source->has_damage && number == 0))
		fail("lr_session_populate: %s (errno %d), slot %u, region %u, offset %llu, %llu "
		     "bytes",
		     lr_error_name(code), problem.os_error, slot->number, number,
		     (unsigned long long)offset, (unsigned long long)bytes);
	return code == LR_OK;
}

bool do_stats(struct actor *actor, struct slot *slot)
{
	struct lr_session_stats stats;
	struct lr_load_error errors[8];
	struct lr_trace_record records[16];

	note(actor, OP_STATS, slot, NULL, 0);
	lr_session_get_stats(slot->session, &stats);
	if (stats.errors && !slot->source->has_damage)
		gather(slot);
	for (uint32_t i = lr_session_get_errors(slot->session, 0, errors, 8); i > 0; i--)
		if (errors[i - 1].region >= SOURCE_REGIONS || errors[i - 1].code >= 0)
			fail("an error that cannot be: region %u, code %d", errors[i - 1].region,
			     errors[i - 1].code);
	/* One reader of the trace at a time. */
	if (slot->keeper == actor->thread)
		lr_session_read_trace(slot->session, records, 16, 0);
	return true;
}

bool do_wait(struct actor *actor, struct slot *slot, uint64_t random)
{
	/* A child has no fill, whatever its parent has. */
	bool has_fill = slot->has_fill && !(actor->is_alone && slot->is_inherited);
	int code;

	note(actor, OP_WAIT, slot, NULL, has_fill);
	code = (random >> 63 ? lr_session_wait_first
			     : lr_session_wait)(slot->session, (int64_t)(random % 3000000));
	if (code != LR_OK && code != LR_ERR_TIMEOUT && code != LR_ERR_NOMEM
	    && code != LR_ERR_ARGUMENT)
		fail("lr_session_wait: %s", lr_error_name(code));
	if ((code == LR_ERR_ARGUMENT) == has_fill)
		fail("lr_session_wait: %s %s a fill", lr_error_name(code),
		     has_fill ? "with" : "without");
	return code == LR_OK;
}
