/* One image, one session and its region, for tests of the fill. */
#ifndef LR_FILL_SETTING_H
#define LR_FILL_SETTING_H

#include "check.h"
#include "image_builder.h"
#include "session.h"

#define PAGE    4096ul
#define CLUSTER 65536ul
#define HUGE    (2ul << 20)
#define HUGES   4ul
#define LENGTH  (HUGES * HUGE)

static struct image image;
static lr_image *opened;
static lr_session *session;
static uint8_t *memory;

static inline void make_image(const char *pattern)
{
	image_init(&image, PAGE, CLUSTER);
	image_add(&image, "memory", LENGTH, pattern);
	image_build(&image);
	image_publish(&image);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
}

/* A session with its region at a multiple of 2 MiB, and `shift` bytes. */
static inline void open_at(uint64_t shift)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	int code = lr_session_open(opened, &options, &session, &problem);
	uint8_t *room;

	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	room = mmap(NULL, LENGTH + 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(room != MAP_FAILED);
	memory = room + (-(uintptr_t)room & (HUGE - 1)) + shift;
	CHECK(mmap(memory, LENGTH, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
	      == memory);
	CHECK_EQ(lr_session_attach(session, 0, memory, NULL), LR_OK);
}

static inline void tear_down(void)
{
	lr_session_close(session);
	CHECK_CALL(munmap(memory, LENGTH));
	lr_image_close(opened);
	image_fini(&image);
}

static inline void need_move(void)
{
	if (!(session->target.uffd.features & LR_UFFD_FEATURE_MOVE))
		SKIP("this kernel has no UFFDIO_MOVE (Linux 6.8)");
}

static inline void need_giving_back(void)
{
	if (!(session->target.uffd.features & LR_UFFD_FEATURE_EXACT_ADDRESS))
		SKIP("this kernel cannot be asked whether a message waits (Linux 5.18)");
}

static inline void fill(const struct lr_fill_options *options)
{
	CHECK_EQ(lr_session_fill(session, options), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
}

static inline uint64_t moved(void)
{
	return session->pager.loader.pages_moved;
}

static inline uint64_t faults(void)
{
	struct lr_session_stats stats;

	lr_session_get_stats(session, &stats);
	return stats.faults;
}

static inline void check_all(void)
{
	CHECK_MEM(memory, image.regions[0].bytes, LENGTH);
}

/* Whether the kernel says that a userfaultfd has the mapping at an address. */
static inline bool is_registered(const void *address)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	char line[512];
	bool is_here = false, is_found = false, is_watched = false;

	CHECK(smaps);
	while (fgets(line, sizeof(line), smaps)) {
		uintptr_t start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strchr(line, '-') < line + 17)
			is_here = start <= (uintptr_t)address && (uintptr_t)address < end;
		else if (is_here && strncmp(line, "VmFlags:", 8) == 0) {
			is_found = true;
			is_watched = strstr(line, " um") != NULL;
		}
	}
	fclose(smaps);
	CHECK(is_found);
	return is_watched;
}

#endif
