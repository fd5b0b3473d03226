#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* A line of the file as far as it was read: start-end perms offset device inode path. */
struct line {
	unsigned field; /* 0 and 1 are the addresses */
	unsigned place; /* in the field */
	uint64_t start;
	uint64_t end;
	bool is_accessible;
	bool is_private;
	bool has_inode;
};

static uint64_t hex_digit(char digit)
{
	return (uint64_t)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
}

static void take(struct line *line, char byte)
{
	if (byte == ' ' || (byte == '-' && line->field == 0)) {
		/* Blanks before the path are many. */
		line->field += line->place > 0;
		line->place = 0;
		return;
	}
	if (line->field == 0)
		line->start = line->start << 4 | hex_digit(byte);
	else if (line->field == 1)
		line->end = line->end << 4 | hex_digit(byte);
	else if (line->field == 2 && line->place == 0)
		line->is_accessible = byte == 'r';
	else if (line->field == 2 && line->place == 3)
		line->is_private = byte == 'p';
	else if (line->field == 5 && byte != '0')
		line->has_inode = true;
	line->place++;
}

static int find_in(int file, uint64_t address, struct lr_mapping *ret_mapping)
{
	struct line line = {0};
	char text[512];
	ssize_t got;

	while ((got = read(file, text, sizeof(text))) > 0 || (got < 0 && errno == EINTR))
		for (ssize_t i = 0; i < got; i++) {
			if (text[i] != '\n') {
				take(&line, text[i]);
				continue;
			}
			if (address < line.end) {
				ret_mapping->start = line.start;
				ret_mapping->end = line.end;
				ret_mapping->is_accessible = line.is_accessible;
				ret_mapping->is_private = line.is_private && !line.has_inode;
				return line.start <= address;
			}
			line = (struct line){0};
		}
	return got < 0 ? -1 : 0;
}

int lr_mapping_find(uint64_t address, struct lr_mapping *ret_mapping)
{
	int before = errno, result = -1;
	int file = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	if (file >= 0) {
		result = find_in(file, address, ret_mapping);
		close(file);
	}
	errno = before;
	return result;
}
