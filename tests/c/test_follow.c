/* Messages of several threads in another order than what they tell of. */
#include "check.h"

#include "follow.h"
#include "image_builder.h"

#define PAGE  4096u
#define PAGES 64u
#define HOME  (1ull << 40)
#define AWAY  (2ull << 40)

struct setting {
	struct image image;
	lr_image *opened;
	struct lr_target target;
	struct lr_range *range;
};

/* One region at HOME, and no memory: what is looked at is the table. */
static void set_up(struct setting *set)
{
	memset(set, 0, sizeof(*set));
	image_make(&set->image, PAGE, 16 * PAGE, PAGES * PAGE, "d");
	CHECK_EQ(lr_image_open(set->image.path, &set->opened, NULL), LR_OK);
	CHECK_EQ(lr_target_open(&set->target, set->opened, PAGE), LR_OK);
	set->range = &set->target.ranges[0];
	CHECK_EQ(lr_target_enter(&set->target, set->range, HOME, PAGES * PAGE), LR_OK);
	CHECK(lr_range_change(set->range, LR_RANGE_CHANGING, LR_RANGE_ACTIVE));
}

static void tear_down(struct setting *set)
{
	lr_target_close(&set->target);
	lr_image_close(set->opened);
	image_fini(&set->image);
}

static uint64_t at(uint64_t base, unsigned page)
{
	return base + (uint64_t)page * PAGE;
}

static void unmapped(struct setting *set, uint64_t start, unsigned pages)
{
	struct lr_uffd_message message = {
		.kind = LR_UFFD_UNMAP, .start = start, .end = at(start, pages)};

	lr_follow(&set->target, &message);
}

static void moved(struct setting *set, uint64_t from, unsigned pages, uint64_t to)
{
	struct lr_uffd_message message = {
		.kind = LR_UFFD_REMAP, .start = from, .end = at(from, pages), .to = to};

	lr_follow(&set->target, &message);
}

/* The region's page that lies at an address; -1: none. */
static int page_at(struct setting *set, uint64_t address)
{
	struct lr_piece piece;

	if (!lr_target_find(&set->target, address, &piece))
		return -1;
	return (int)((piece.offset + (address - piece.start)) / PAGE);
}

static int is_settled(struct setting *set, unsigned page)
{
	return lr_pageset_is_settled(&set->target.clusters, page);
}

static void moves_and_forgets(void)
{
	struct setting set;

	set_up(&set);
	moved(&set, at(HOME, 10), 5, AWAY);
	unmapped(&set, at(HOME, 10), 5);
	CHECK_EQ(page_at(&set, at(HOME, 9)), 9);
	CHECK_EQ(page_at(&set, at(HOME, 10)), -1);
	CHECK_EQ(page_at(&set, at(HOME, 15)), 15);
	CHECK_EQ(page_at(&set, at(AWAY, 4)), 14);
	CHECK(!is_settled(&set, 10));
	unmapped(&set, at(AWAY, 1), 2);
	CHECK_EQ(page_at(&set, at(AWAY, 0)), 10);
	CHECK_EQ(page_at(&set, at(AWAY, 1)), -1);
	CHECK_EQ(page_at(&set, at(AWAY, 3)), 13);
	CHECK(is_settled(&set, 11) && is_settled(&set, 12) && !is_settled(&set, 13));
	CHECK_EQ(set.target.unmapped_count, 0);
	tear_down(&set);
}

/* One thread unmaps pages 0 to 9; another's move to 2 and 3 of these is read before. */
static void a_move_is_read_before_the_unmap_that_made_room(void)
{
	struct setting set;

	set_up(&set);
	moved(&set, at(HOME, 20), 2, at(HOME, 2));
	CHECK(is_settled(&set, 2) && is_settled(&set, 3));
	unmapped(&set, HOME, 10);
	CHECK_EQ(page_at(&set, at(HOME, 1)), -1);
	CHECK_EQ(page_at(&set, at(HOME, 2)), 20);
	CHECK_EQ(page_at(&set, at(HOME, 3)), 21);
	CHECK_EQ(page_at(&set, at(HOME, 4)), -1);
	unmapped(&set, at(HOME, 20), 2);
	CHECK(!is_settled(&set, 20) && !is_settled(&set, 21));
	CHECK_EQ(page_at(&set, at(HOME, 3)), 21);
	/* The next one is about it. */
	unmapped(&set, at(HOME, 2), 2);
	CHECK_EQ(page_at(&set, at(HOME, 2)), -1);
	CHECK(is_settled(&set, 20) && is_settled(&set, 21));
	CHECK_EQ(set.target.unmapped_count, 0);
	tear_down(&set);
}

/* Between the two messages of one move another comes to the old place, and goes again. */
static void the_old_place_is_used_before_its_unmap_is_read(void)
{
	struct setting set;

	set_up(&set);
	moved(&set, at(HOME, 10), 4, AWAY);
	moved(&set, at(HOME, 30), 2, at(HOME, 11));
	moved(&set, at(HOME, 11), 2, at(AWAY, 100));
	moved(&set, at(HOME, 40), 4, at(HOME, 10));
	unmapped(&set, at(HOME, 10), 4);
	CHECK_EQ(page_at(&set, at(HOME, 10)), 40);
	CHECK_EQ(page_at(&set, at(HOME, 12)), 42);
	unmapped(&set, at(HOME, 11), 2);
	unmapped(&set, at(HOME, 30), 2);
	unmapped(&set, at(HOME, 40), 4);
	for (unsigned i = 0; i < 4; i++)
		CHECK_EQ(page_at(&set, at(HOME, 10 + i)), (int)(40 + i));
	CHECK_EQ(page_at(&set, at(AWAY, 101)), 31);
	CHECK_EQ(page_at(&set, at(AWAY, 3)), 13);
	for (unsigned page = 0; page < PAGES; page++)
		CHECK(!is_settled(&set, page));
	CHECK_EQ(set.target.unmapped_count, 0);
	tear_down(&set);
}

/* Half of the new place was the region's until a moment ago, half was nobody's. */
static void only_what_was_in_the_way_is_still_to_be_told(void)
{
	struct setting set;

	set_up(&set);
	moved(&set, HOME, 4, at(HOME, 62));
	unmapped(&set, at(HOME, 62), 2);
	unmapped(&set, HOME, 4);
	CHECK_EQ(page_at(&set, at(HOME, 62)), 0);
	CHECK_EQ(page_at(&set, at(HOME, 65)), 3);
	/* The other half was there for good: this is about it. */
	unmapped(&set, at(HOME, 64), 2);
	CHECK_EQ(page_at(&set, at(HOME, 63)), 1);
	CHECK_EQ(page_at(&set, at(HOME, 64)), -1);
	tear_down(&set);
}

/* MREMAP_DONTUNMAP: no second message; the place is unmapped later, in two parts. */
static void a_kept_place_is_unmapped_later(void)
{
	struct setting set;

	set_up(&set);
	moved(&set, at(HOME, 10), 4, AWAY);
	unmapped(&set, at(HOME, 10), 1);
	unmapped(&set, at(HOME, 11), 3);
	CHECK_EQ(set.target.unmapped_count, 0);
	moved(&set, AWAY, 4, at(HOME, 10));
	unmapped(&set, AWAY, 4);
	CHECK_EQ(page_at(&set, at(HOME, 13)), 13);
	unmapped(&set, at(HOME, 10), 4);
	CHECK_EQ(page_at(&set, at(HOME, 13)), -1);
	tear_down(&set);
}

/* A range that is being attached was mapped after whatever is read of its place. */
static void attaching_is_not_disturbed(void)
{
	struct lr_uffd_message removed = {.kind = LR_UFFD_REMOVE};
	struct setting set;

	set_up(&set);
	CHECK(lr_range_change(set.range, LR_RANGE_ACTIVE, LR_RANGE_SUSPENDED));
	atomic_store(&set.range->state, LR_RANGE_CHANGING);
	unmapped(&set, at(HOME, 5), 10);
	removed.start = HOME;
	removed.end = at(HOME, PAGES);
	lr_follow(&set.target, &removed);
	for (unsigned page = 0; page < PAGES; page++) {
		CHECK_EQ(page_at(&set, at(HOME, page)), (int)page);
		CHECK(!is_settled(&set, page));
	}
	tear_down(&set);
}

static const struct check_case cases[] = {
	CHECK_CASE(moves_and_forgets),
	CHECK_CASE(a_move_is_read_before_the_unmap_that_made_room),
	CHECK_CASE(the_old_place_is_used_before_its_unmap_is_read),
	CHECK_CASE(only_what_was_in_the_way_is_still_to_be_told),
	CHECK_CASE(a_kept_place_is_unmapped_later),
	CHECK_CASE(attaching_is_not_disturbed),
};
CHECK_MAIN(cases)
