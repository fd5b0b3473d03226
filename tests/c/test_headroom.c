#include "check.h"

#include "headroom_tree.h"

/* ---- v2 -------------------------------------------------------------------------------- */

static void finds_the_limit_of_its_v2_cgroup(void)
{
	make_tree();
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 60 * MIB, 0);
	put("/sys/fs/cgroup/app/memory.max", "%ju\n", (uintmax_t)(100 * MIB));
	CHECK_EQ(get_in_tree(), 40 * MIB);
	remove_tree();
}

static void counts_unused_page_cache_as_free(void)
{
	make_tree();
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 99 * MIB, 30 * MIB);
	put("/sys/fs/cgroup/app/memory.max", "%ju\n", (uintmax_t)(100 * MIB));
	CHECK_EQ(get_in_tree(), 31 * MIB);
	/* The two are not read at one moment: never more than the limit. */
	put_v2_level("/sys/fs/cgroup/app", 10 * MIB, 30 * MIB);
	put("/sys/fs/cgroup/app/memory.max", "%ju\n", (uintmax_t)(100 * MIB));
	CHECK_EQ(get_in_tree(), 100 * MIB);
	remove_tree();
}

static void takes_the_tightest_of_all_ancestors(void)
{
	make_tree();
	put_v2("/user.slice/user-1000.slice/app.scope");
	put_v2_level("/sys/fs/cgroup/user.slice/user-1000.slice/app.scope", 10 * MIB, 0);
	put_v2_level("/sys/fs/cgroup/user.slice/user-1000.slice", 300 * MIB, 5 * MIB);
	put_v2_level("/sys/fs/cgroup/user.slice", 700 * MIB, 0);
	CHECK_EQ(get_in_tree(), UINT64_MAX);
	put_number("/sys/fs/cgroup/user.slice/user-1000.slice/app.scope", "memory.max", GIB);
	CHECK_EQ(get_in_tree(), GIB - 10 * MIB);
	put_number("/sys/fs/cgroup/user.slice", "memory.max", GIB);
	CHECK_EQ(get_in_tree(), GIB - 700 * MIB);
	put_number("/sys/fs/cgroup/user.slice/user-1000.slice", "memory.max", 400 * MIB);
	CHECK_EQ(get_in_tree(), 105 * MIB);
	remove_tree();
}

static void passes_over_levels_without_the_controller(void)
{
	make_tree();
	put_v2("/outer/inner");
	put("/sys/fs/cgroup/outer/inner/cgroup.procs", "1\n");
	put_v2_level("/sys/fs/cgroup/outer", 60 * MIB, 0);
	put_number("/sys/fs/cgroup/outer", "memory.max", 64 * MIB);
	CHECK_EQ(get_in_tree(), 4 * MIB);
	remove_tree();
}

static void stops_at_memory_high_too(void)
{
	make_tree();
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 60 * MIB, 1 * MIB);
	put_number("/sys/fs/cgroup/app", "memory.max", 100 * MIB);
	put_number("/sys/fs/cgroup/app", "memory.high", 80 * MIB);
	CHECK_EQ(get_in_tree(), 21 * MIB);
	remove_tree();
}

static void gives_nothing_at_the_limit_and_beyond(void)
{
	make_tree();
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 100 * MIB, 0);
	put_number("/sys/fs/cgroup/app", "memory.max", 100 * MIB);
	CHECK_EQ(get_in_tree(), 0);
	put_number("/sys/fs/cgroup/app", "memory.high", 90 * MIB);
	CHECK_EQ(get_in_tree(), 0);
	put_number("/sys/fs/cgroup/app", "memory.max", 0);
	CHECK_EQ(get_in_tree(), 0);
	remove_tree();
}

static void sees_limits_and_usage_that_change(void)
{
	make_tree();
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 60 * MIB, 0);
	struct lr_headroom headroom = open_tree();
	CHECK_EQ(lr_headroom_get(&headroom), UINT64_MAX);
	put_number("/sys/fs/cgroup/app", "memory.max", 100 * MIB);
	CHECK_EQ(lr_headroom_get(&headroom), 40 * MIB);
	put_number("/sys/fs/cgroup/app", "memory.current", 70 * MIB);
	CHECK_EQ(lr_headroom_get(&headroom), 30 * MIB);
	put("/sys/fs/cgroup/app/memory.max", "max\n");
	CHECK_EQ(lr_headroom_get(&headroom), UINT64_MAX);
	lr_headroom_close(&headroom);
	remove_tree();
}

/* ---- v1, and both ---------------------------------------------------------------------- */

static void finds_the_limits_of_v1_cgroups(void)
{
	make_tree();
	put_v1("/outer/app");
	put_v1_level("/sys/fs/cgroup/memory", V1_NONE, 5 * GIB, 0);
	put_v1_level("/sys/fs/cgroup/memory/outer", V1_NONE, 95 * MIB, 2 * MIB);
	put_v1_level("/sys/fs/cgroup/memory/outer/app", 100 * MIB, 60 * MIB, 3 * MIB);
	CHECK_EQ(get_in_tree(), 43 * MIB);
	put_number("/sys/fs/cgroup/memory/outer", "memory.limit_in_bytes", 96 * MIB);
	CHECK_EQ(get_in_tree(), 3 * MIB);
	/* An old kernel's cgroup that counts nothing below itself. */
	put_number("/sys/fs/cgroup/memory/outer", "memory.use_hierarchy", 0);
	CHECK_EQ(get_in_tree(), 43 * MIB);
	remove_tree();
}

static void stops_where_memory_and_swap_of_v1_end(void)
{
	make_tree();
	put_v1("/app");
	put_v1_level("/sys/fs/cgroup/memory/app", 100 * MIB, 60 * MIB, 2 * MIB);
	put_number("/sys/fs/cgroup/memory/app", "memory.memsw.limit_in_bytes", 110 * MIB);
	put_number("/sys/fs/cgroup/memory/app", "memory.memsw.usage_in_bytes", 90 * MIB);
	CHECK_EQ(get_in_tree(), 22 * MIB);
	put_number("/sys/fs/cgroup/memory/app", "memory.memsw.usage_in_bytes", 60 * MIB);
	CHECK_EQ(get_in_tree(), 42 * MIB);
	remove_tree();
}

static void finds_v1_limits_in_a_hybrid_hierarchy(void)
{
	make_tree();
	put_v1("/app");
	put("/proc/self/mountinfo",
	    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,hugetlb\n"
	    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
	put("/proc/self/cgroup", "4:hugetlb,memory:/app\n0::/app.scope\n");
	put("/sys/fs/cgroup/unified/app.scope/cgroup.procs", "1\n");
	put_v1_level("/sys/fs/cgroup/memory/app", 100 * MIB, 60 * MIB, 0);
	CHECK_EQ(get_in_tree(), 40 * MIB);
	remove_tree();
}

static void takes_no_other_controller_for_memory(void)
{
	make_tree();
	put("/proc/self/mountinfo",
	    "35 31 0:32 / /sys/fs/cgroup/x rw - cgroup cgroup rw,memoryless\n");
	put("/proc/self/cgroup", "4:memoryless:/app\n");
	put_v1_level("/sys/fs/cgroup/x/app", 100 * MIB, 60 * MIB, 0);
	CHECK_EQ(get_in_tree(), UINT64_MAX);
	remove_tree();
}

/* ---- Containers: mounts of a part, cgroup namespaces ----------------------------------- */

static void reads_a_mount_of_its_own_cgroup(void)
{
	make_tree();
	put("/proc/self/mountinfo",
	    "50 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
	put("/proc/self/cgroup", "4:memory:/docker/abc\n");
	put_v1_level("/sys/fs/cgroup/memory", 100 * MIB, 70 * MIB, 0);
	put_v1_level("/sys/fs/cgroup/memory/child", 100 * MIB, 99 * MIB, 0);
	CHECK_EQ(get_in_tree(), 30 * MIB);
	put("/proc/self/cgroup", "4:memory:/docker/abc/child\n");
	CHECK_EQ(get_in_tree(), 1 * MIB);
	/* A neighbour whose name begins alike: what is mounted is the best that is known. */
	put("/proc/self/cgroup", "4:memory:/docker/abcdef\n");
	CHECK_EQ(get_in_tree(), 30 * MIB);
	remove_tree();
}

static void reads_the_root_of_a_cgroup_namespace(void)
{
	make_tree();
	put_v2("/");
	put_v2_level("/sys/fs/cgroup", 30 * MIB, 0);
	put_number("/sys/fs/cgroup", "memory.max", 64 * MIB);
	CHECK_EQ(get_in_tree(), 34 * MIB);
	put_v2("/below");
	put_v2_level("/sys/fs/cgroup/below", 30 * MIB, 0);
	put_number("/sys/fs/cgroup/below", "memory.max", 40 * MIB);
	CHECK_EQ(get_in_tree(), 10 * MIB);
	remove_tree();
}

static void never_climbs_out_of_a_mount(void)
{
	make_tree();
	/* Moved out of its namespace's root: this would be /sys/fs/neighbour. */
	put_v2("/../neighbour");
	put_v2_level("/sys/fs/neighbour", 30 * MIB, 0);
	put_number("/sys/fs/neighbour", "memory.max", 31 * MIB);
	put_v2_level("/sys/fs/cgroup", 30 * MIB, 0);
	put_number("/sys/fs/cgroup", "memory.max", 64 * MIB);
	CHECK_EQ(get_in_tree(), 34 * MIB);
	/* A mount from above the namespace's root shows it. */
	put("/proc/self/mountinfo",
	    "31 23 0:27 /.. /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n");
	put_v2_level("/sys/fs/cgroup/neighbour", 30 * MIB, 0);
	put_number("/sys/fs/cgroup/neighbour", "memory.max", 32 * MIB);
	CHECK_EQ(get_in_tree(), 2 * MIB);
	remove_tree();
}

static void prefers_the_mount_that_shows_most(void)
{
	make_tree();
	put("/proc/self/mountinfo", "50 31 0:27 /other /mnt/other rw - cgroup2 cgroup2 rw\n"
				    "51 31 0:27 /a/b /mnt/part rw - cgroup2 cgroup2 rw\n"
				    "52 31 0:27 / /mnt/whole\\040tree rw - cgroup2 cgroup2 rw\n"
				    "53 31 0:27 /a /mnt/more rw - cgroup2 cgroup2 rw\n");
	put("/proc/self/cgroup", "0::/a/b\n");
	put_v2_level("/mnt/other", 1 * MIB, 0);
	put_number("/mnt/other", "memory.max", 2 * MIB);
	put_v2_level("/mnt/whole tree/a", 30 * MIB, 0);
	put_number("/mnt/whole tree/a", "memory.max", 40 * MIB);
	CHECK_EQ(get_in_tree(), 10 * MIB);
	remove_tree();
}

static void looks_at_the_innermost_of_very_many(void)
{
	char path[256] = "", folder[512];

	make_tree();
	for (int i = 0; i < LR_HEADROOM_LEVELS_MAX + 8; i++)
		snprintf(path + strlen(path), sizeof(path) - strlen(path), "/c%d", i);
	put_v2(path);
	while (path[0]) {
		snprintf(folder, sizeof(folder), "/sys/fs/cgroup%s", path);
		put_v2_level(folder, 10 * MIB, 0);
		put_number(folder, "memory.max", strchr(path + 1, '/') ? GIB : 11 * MIB);
		*strrchr(path, '/') = '\0';
	}
	CHECK_EQ(get_in_tree(), GIB - 10 * MIB);
	remove_tree();
}

/* ---- The machine, and what is not there ------------------------------------------------ */

static void considers_the_machine(void)
{
	make_tree();
	put_machine(64 * GIB, 3 * GIB);
	CHECK_EQ(get_in_tree(), 3 * GIB);
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 60 * MIB, 0);
	CHECK_EQ(get_in_tree(), 3 * GIB);
	put_number("/sys/fs/cgroup/app", "memory.max", 8 * GIB);
	CHECK_EQ(get_in_tree(), 3 * GIB);
	put_number("/sys/fs/cgroup/app", "memory.max", 2 * GIB);
	CHECK_EQ(get_in_tree(), 2 * GIB - 60 * MIB);
	put("/proc/meminfo", "MemTotal: 4096 kB\nMemFree: 1024 kB\n"); /* before Linux 3.14 */
	CHECK_EQ(get_in_tree(), 2 * GIB - 60 * MIB);
	remove_tree();
}

static void knows_no_limit_where_files_are_missing(void)
{
	make_tree();
	CHECK_EQ(get_in_tree(), UINT64_MAX);
	put("/proc/self/cgroup", "0::/app\n");
	CHECK_EQ(get_in_tree(), UINT64_MAX);
	put("/proc/self/mountinfo", V2_MOUNT);
	CHECK_EQ(get_in_tree(), UINT64_MAX);
	put("/sys/fs/cgroup/app/memory.max", "1048576\n");
	CHECK_EQ(get_in_tree(), UINT64_MAX); /* nothing says how much is used */
	put("/sys/fs/cgroup/app/memory.current", "4096\n");
	CHECK_EQ(get_in_tree(), MIB - 4096); /* without memory.stat: nothing can be taken back */
	put("/sys/fs/cgroup/app/memory.stat", "anon 4096\n");
	CHECK_EQ(get_in_tree(), MIB - 4096);
	put("/sys/fs/cgroup/app/memory.current", "\n");
	CHECK_EQ(get_in_tree(), UINT64_MAX);
	remove_tree();
}

static void takes_broken_files_for_missing(void)
{
	static const char *const lines[] = {"",
					    "\n",
					    "1",
					    "a b c d e",
					    "1 2 3 / / rw - ",
					    "- - -",
					    "1 2 0:1 / /sys/fs/cgroup rw shared:1 cgroup2",
					    "1 2 0:1 / /sys\\0 rw - cgroup2",
					    "0:",
					    "::",
					    "0::",
					    ":"};

	make_tree();
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		put("/proc/self/mountinfo", "%s\n%s", lines[i], lines[i]);
		put("/proc/self/cgroup", "0::/app\n");
		CHECK_EQ(get_in_tree(), UINT64_MAX);
		put("/proc/self/mountinfo", V2_MOUNT);
		put("/proc/self/cgroup", "%s\n%s", lines[i], lines[i]);
		put("/proc/meminfo", "%s", lines[i]);
		CHECK_EQ(get_in_tree(), UINT64_MAX);
	}
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 1, 0);
	put("/sys/fs/cgroup/app/memory.max", "-1\n");
	CHECK_EQ(get_in_tree(), UINT64_MAX);
	remove_tree();
}

static const struct check_case cases[] = {
	CHECK_CASE(finds_the_limit_of_its_v2_cgroup),
	CHECK_CASE(counts_unused_page_cache_as_free),
	CHECK_CASE(takes_the_tightest_of_all_ancestors),
	CHECK_CASE(passes_over_levels_without_the_controller),
	CHECK_CASE(stops_at_memory_high_too),
	CHECK_CASE(gives_nothing_at_the_limit_and_beyond),
	CHECK_CASE(sees_limits_and_usage_that_change),
	CHECK_CASE(finds_the_limits_of_v1_cgroups),
	CHECK_CASE(stops_where_memory_and_swap_of_v1_end),
	CHECK_CASE(finds_v1_limits_in_a_hybrid_hierarchy),
	CHECK_CASE(takes_no_other_controller_for_memory),
	CHECK_CASE(reads_a_mount_of_its_own_cgroup),
	CHECK_CASE(reads_the_root_of_a_cgroup_namespace),
	CHECK_CASE(never_climbs_out_of_a_mount),
	CHECK_CASE(prefers_the_mount_that_shows_most),
	CHECK_CASE(looks_at_the_innermost_of_very_many),
	CHECK_CASE(considers_the_machine),
	CHECK_CASE(knows_no_limit_where_files_are_missing),
	CHECK_CASE(takes_broken_files_for_missing),
};
CHECK_MAIN(cases)
