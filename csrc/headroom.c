#include "headroom.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Finding the cgroups --------------------------------------------------------------- */

/* The two kinds of hierarchy, and what their files are called. */
struct kind {
	const char *limit[2], *usage[2];
	bool is_v1;
};

static const struct kind v2 = {
	.limit = {"memory.max", "memory.high"},
	.usage = {"memory.current", NULL},
};
static const struct kind v1 = {
	.limit = {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
	.usage = {"memory.usage_in_bytes", "memory.memsw.usage_in_bytes"},
	.is_v1 = true,
};

/* Where this process is in a hierarchy, and the folder that shows it. */
struct place {
	char path[PATH_MAX];   /* as /proc/self/cgroup says; empty: not in such a hierarchy */
	char mount[PATH_MAX];  /* where the hierarchy is mounted; empty: nowhere */
	char inside[PATH_MAX]; /* of the cgroup below the mount: empty, or from a slash on */
	size_t hidden;         /* length of the part of `path` that lies above the mount */
	bool is_certain;       /* false: that mount may not show this process's cgroup */
};

/* mountinfo writes blanks and backslashes as \ooo. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *from = text; *from; to++) {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] && from[3]) {
			*to = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = '\0';
}

/* Whether `word` is one of those that commas separate. */
static bool has_word(const char *words, const char *word)
{
	size_t length = strlen(word);

	for (const char *at = words; (at = strstr(at, word)); at += length)
		if ((at == words || at[-1] == ',') && (at[length] == ',' || at[length] == '\0'))
			return true;
	return false;
}

static bool climbs(const char *path)
{
	for (const char *at = path; (at = strstr(at, "/..")); at += 3)
		if (at[3] == '/' || at[3] == '\0')
			return true;
	return false;
}

/* Of several mounts the one that shows the most ancestors is taken. Paths in the two files are seen
 * from the cgroup namespace's root, and begin with "/.." where they lie above it. What lies below a
 * mount whose root is not above our cgroup is not known: then its own folder is all there is, and
 * in a container most often the right one. */
static void consider_mount(struct place *place, const char *root, const char *mount)
{
	size_t length = strcmp(root, "/") == 0 ? 0 : strlen(root);
	const char *inside = place->path + length;
	bool fits = strncmp(place->path, root, length) == 0 && (*inside == '/' || *inside == '\0')
		    && !climbs(inside);

	if (place->mount[0] && (!fits || (place->is_certain && place->hidden <= length)))
		return;
	if (strlen(mount) >= sizeof(place->mount))
		return;
	strcpy(place->mount, mount);
	strcpy(place->inside, fits && strcmp(inside, "/") != 0 ? inside : "");
	place->is_certain = fits;
	place->hidden = length;
}

/* A line of /proc/self/mountinfo: id, parent, device, root, mount point, options, some optional
 * fields, "-", type, source, the file system's options. */
static void read_mount(char *line, struct place *in_v1, struct place *in_v2)
{
	char *fields[5], *rest = line, *type, *options;

	for (int i = 0; i < 5; i++)
		if (!(fields[i] = strsep(&rest, " ")) || !rest)
			return;
	rest = strstr(rest, " - ");
	if (!rest)
		return;
	rest += 3;
	type = strsep(&rest, " ");
	strsep(&rest, " ");
	options = rest;
	unescape(fields[3]);
	unescape(fields[4]);
	if (strcmp(type, "cgroup2") == 0 && in_v2->path[0])
		consider_mount(in_v2, fields[3], fields[4]);
	else if (strcmp(type, "cgroup") == 0 && in_v1->path[0] && options
		 && has_word(options, "memory"))
		consider_mount(in_v1, fields[3], fields[4]);
}

/* A line of /proc/self/cgroup: number, controllers, path. */
static void read_membership(char *line, struct place *in_v1, struct place *in_v2)
{
	char *rest = line, *number = strsep(&rest, ":"), *controllers = strsep(&rest, ":");
	struct place *place = NULL;

	if (!rest || rest[0] != '/' || strlen(rest) >= sizeof(place->path))
		return;
	if (strcmp(number, "0") == 0 && controllers[0] == '\0')
		place = in_v2;
	else if (has_word(controllers, "memory"))
		place = in_v1;
	if (place)
		strcpy(place->path, rest);
}

/* Give each line of a file to `take`. 0, or the errno where it is there and could not be read. */
static int each_line(const char *root, const char *name,
		     void (*take)(char *, struct place *, struct place *), struct place *in_v1,
		     struct place *in_v2)
{
	char path[PATH_MAX], *line = NULL;
	size_t room = 0;
	ssize_t length;
	FILE *file;
	int error = 0;

	if (snprintf(path, sizeof(path), "%s%s", root, name) >= (int)sizeof(path))
		return ENAMETOOLONG;
	file = fopen(path, "re");
	if (!file)
		return errno;
	errno = 0;
	while ((length = getline(&line, &room, file)) > 0) {
		if (line[length - 1] == '\n')
			line[length - 1] = '\0';
		take(line, in_v1, in_v2);
		errno = 0;
	}
	error = errno;
	free(line);
	fclose(file);
	return error;
}

/* ---- Opening --------------------------------------------------------------------------- */

/* What keeps us from looking, as against what is not there or not for us. */
static bool is_exhausted(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOMEM;
}

/* A descriptor, -1 where there is no such file; *ret_error where it could not be opened for want of
 * something. */
static int open_file(const char *folder, const char *name, int *ret_error)
{
	char path[PATH_MAX];
	int fd;

	if (!name || snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
		return -1;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0 && is_exhausted(errno))
		*ret_error = errno;
	return fd;
}

static void close_file(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_level(struct lr_headroom_level *level)
{
	for (int i = 0; i < 2; i++) {
		close_file(&level->limit[i]);
		close_file(&level->usage[i]);
	}
	close_file(&level->stat);
}

static int open_level(struct lr_headroom *headroom, const char *folder, const struct kind *kind)
{
	struct lr_headroom_level *level = &headroom->levels[headroom->level_count];
	int error = 0;

	level->is_v1 = kind->is_v1;
	level->stat = open_file(folder, "memory.stat", &error);
	for (int i = 0; i < 2; i++) {
		level->limit[i] = open_file(folder, kind->limit[i], &error);
		level->usage[i] = open_file(folder, kind->usage[i], &error);
	}
	/* A v2 root has neither, nor has a cgroup without the memory controller. */
	if (error || level->usage[0] < 0 || (level->limit[0] < 0 && level->limit[1] < 0))
		close_level(level);
	else
		headroom->level_count++;
	return error;
}

static uint64_t read_number(int fd)
{
	char text[32];
	ssize_t got = pread(fd, text, sizeof(text) - 1, 0);
	uint64_t value;

	if (got <= 0 || text[0] < '0' || text[0] > '9')
		return UINT64_MAX; /* "max", or gone */
	text[got] = '\0';
	value = strtoull(text, NULL, 10);
	return value >= UINT64_MAX >> 2 ? UINT64_MAX : value; /* v1 says "none" by a large number */
}

/* Before Linux 5.11 a v1 cgroup could be told not to count what is below it. */
static bool counts_children(const char *folder)
{
	int error = 0, fd = open_file(folder, "memory.use_hierarchy", &error);
	bool does = fd < 0 || read_number(fd) != 0;

	close_file(&fd);
	return does;
}

/* The cgroup and its ancestors, as far up as the mount shows. */
static int open_levels(struct lr_headroom *headroom, const char *root, const struct place *place,
		       const struct kind *kind)
{
	char folder[PATH_MAX];
	size_t top;
	int error = 0, length;

	if (!place->mount[0])
		return 0;
	length = snprintf(folder, sizeof(folder), "%s%s%s", root, place->mount, place->inside);
	if (length >= (int)sizeof(folder))
		return 0;
	top = strlen(root) + strlen(place->mount);
	while (!error && headroom->level_count < LR_HEADROOM_LEVELS_MAX) {
		error = open_level(headroom, folder, kind);
		if (strlen(folder) <= top)
			break;
		*strrchr(folder, '/') = '\0';
		if (kind->is_v1 && !counts_children(folder))
			break;
	}
	return error;
}

int lr_headroom_open_for(struct lr_headroom *headroom, const char *root, int32_t process)
{
	struct place *places = calloc(2, sizeof(*places)); /* too large for some threads' stacks */
	const char *prefix = strcmp(root, "/") == 0 ? "" : root;
	char membership[32] = "/proc/self/cgroup";
	struct place *in_v1, *in_v2;
	int error;

	memset(headroom, 0, sizeof(*headroom));
	headroom->meminfo = -1;
	if (!places)
		return LR_ERR_NOMEM;
	in_v1 = &places[0];
	in_v2 = &places[1];
	if (process)
		snprintf(membership, sizeof(membership), "/proc/%d/cgroup", process);
	error = each_line(prefix, membership, read_membership, in_v1, in_v2);
	if (!is_exhausted(error))
		error = each_line(prefix, "/proc/self/mountinfo", read_mount, in_v1, in_v2);
	if (!is_exhausted(error)) {
		error = 0; /* without /proc nothing is known to limit */
		headroom->meminfo = open_file(prefix, "proc/meminfo", &error);
	}
	if (!error)
		error = open_levels(headroom, prefix, in_v2, &v2);
	if (!error)
		error = open_levels(headroom, prefix, in_v1, &v1);
	free(places);
	if (!error)
		return LR_OK;
	lr_headroom_close(headroom);
	return lr_problem_from_errno(NULL, error);
}

int lr_headroom_open(struct lr_headroom *headroom, const char *root)
{
	return lr_headroom_open_for(headroom, root, 0);
}

void lr_headroom_close(struct lr_headroom *headroom)
{
	close_file(&headroom->meminfo);
	for (uint32_t i = 0; i < headroom->level_count; i++)
		close_level(&headroom->levels[i]);
	headroom->level_count = 0;
}

unsigned lr_headroom_list(const struct lr_headroom *headroom,
			  int ret_fds[LR_HEADROOM_DESCRIPTORS_MAX])
{
	unsigned count = 0;

	ret_fds[count++] = headroom->meminfo;
	for (uint32_t i = 0; i < headroom->level_count; i++) {
		const struct lr_headroom_level *level = &headroom->levels[i];

		for (int j = 0; j < 2; j++) {
			ret_fds[count++] = level->limit[j];
			ret_fds[count++] = level->usage[j];
		}
		ret_fds[count++] = level->stat;
	}
	return count;
}

/* ---- Asking ---------------------------------------------------------------------------- */

/* The number after a key at the beginning of a line, or 0. */
static uint64_t find_number(const char *text, const char *key)
{
	size_t length = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += line != text;
		if (strncmp(line, key, length) == 0)
			return strtoull(line + length, NULL, 10);
	}
	return 0;
}

/* Page cache that nobody used lately: goes as soon as the limit is reached. */
static uint64_t read_reclaimable(const struct lr_headroom_level *level)
{
	char text[4096];
	ssize_t got = pread(level->stat, text, sizeof(text) - 1, 0);

	if (got <= 0)
		return 0;
	text[got] = '\0';
	/* v1 counts a cgroup's children in another line. */
	return find_number(text, level->is_v1 ? "total_inactive_file " : "inactive_file ");
}

struct limit {
	uint64_t bytes; /* UINT64_MAX: none */
	uint64_t used;
};

static struct limit read_limit(const struct lr_headroom_level *level, int i)
{
	struct limit limit = {.bytes = UINT64_MAX};
	int usage = level->usage[level->is_v1 ? i : 0];

	if (level->limit[i] >= 0 && usage >= 0)
		limit.bytes = read_number(level->limit[i]);
	if (limit.bytes == UINT64_MAX)
		return limit;
	limit.used = read_number(usage);
	if (limit.used == UINT64_MAX)
		limit.bytes = UINT64_MAX; /* the cgroup is gone */
	return limit;
}

static uint64_t subtract(uint64_t from, uint64_t bytes)
{
	return from > bytes ? from - bytes : 0;
}

static uint64_t get_free(const struct limit *limit, uint64_t reclaimable)
{
	return subtract(limit->bytes, subtract(limit->used, reclaimable));
}

static struct limit read_machine(const struct lr_headroom *headroom, uint64_t *ret_free)
{
	char text[256]; /* the first lines are what is wanted */
	ssize_t got =
		headroom->meminfo < 0 ? 0 : pread(headroom->meminfo, text, sizeof(text) - 1, 0);
	struct limit limit = {.bytes = UINT64_MAX};

	*ret_free = UINT64_MAX;
	if (got <= 0)
		return limit;
	text[got] = '\0';
	if (!strstr(text, "\nMemAvailable:"))
		return limit;
	limit.bytes = find_number(text, "MemTotal:") * 1024;
	*ret_free = find_number(text, "MemAvailable:") * 1024;
	return limit;
}

uint64_t lr_headroom_get(const struct lr_headroom *headroom)
{
	uint64_t least;

	read_machine(headroom, &least);
	for (uint32_t i = 0; i < headroom->level_count; i++) {
		const struct lr_headroom_level *level = &headroom->levels[i];

		for (int j = 0; j < 2; j++) {
			struct limit limit = read_limit(level, j);
			uint64_t room;

			if (limit.bytes == UINT64_MAX)
				continue;
			room = get_free(&limit, read_reclaimable(level));
			least = room < least ? room : least;
		}
	}
	return least;
}

uint64_t lr_headroom_margin(uint64_t limit)
{
	uint64_t least = 16ull << 20, most = 1ull << 30, margin = limit / 16;

	return margin < least ? least : margin > most ? most : margin;
}

static bool is_enough(uint64_t room, const struct limit *limit, uint64_t bytes)
{
	return room >= bytes && room - bytes >= lr_headroom_margin(limit->bytes);
}

bool lr_headroom_allows(const struct lr_headroom *headroom, uint64_t bytes)
{
	uint64_t room;
	struct limit limit = read_machine(headroom, &room);

	if (limit.bytes != UINT64_MAX && !is_enough(room, &limit, bytes))
		return false;
	for (uint32_t i = 0; i < headroom->level_count; i++) {
		const struct lr_headroom_level *level = &headroom->levels[i];

		for (int j = 0; j < 2; j++) {
			limit = read_limit(level, j);
			if (limit.bytes == UINT64_MAX
			    || is_enough(get_free(&limit, 0), &limit, bytes))
				continue;
			/* Reading memory.stat has the kernel add up all processors' counters. */
			if (!is_enough(get_free(&limit, read_reclaimable(level)), &limit, bytes))
				return false;
		}
	}
	return true;
}
