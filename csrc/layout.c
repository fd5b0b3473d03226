#include "layout.h"

#include <string.h>

static bool unit_is_data(const struct lr_decoded *decoded, uint64_t offset)
{
	uint64_t end = offset + lr_layout_unit(decoded);

	for (; offset < end; offset += decoded->page_size) {
		uint32_t page = (uint32_t)(offset / decoded->page_size);

		if (page < decoded->info->pages
		    && lr_states_get(decoded->info->states, page) == LR_PAGE_DATA)
			return true;
	}
	return false;
}

struct lr_run lr_layout_run(const struct lr_decoded *decoded, uint64_t offset, uint64_t bytes)
{
	uint64_t unit = lr_layout_unit(decoded);
	struct lr_run run;

	offset -= offset % unit;
	run = (struct lr_run){unit_is_data(decoded, offset), offset, offset + unit};
	while (run.begin > 0 && unit_is_data(decoded, run.begin - unit) == run.is_data)
		run.begin -= unit;
	while (run.end < bytes && unit_is_data(decoded, run.end) == run.is_data)
		run.end += unit;
	if (run.end > bytes)
		run.end = bytes;
	return run;
}

const uint8_t *lr_layout_data(const struct lr_decoded *decoded, uint64_t offset)
{
	uint64_t page = offset / decoded->page_size, packed = 0;

	if (decoded->expanded)
		return decoded->expanded + offset;
	for (uint32_t before = 0; before < page; before++)
		packed += lr_states_get(decoded->info->states, before) == LR_PAGE_DATA;
	return decoded->data + packed * decoded->page_size + offset % decoded->page_size;
}

void lr_layout_expand(const struct lr_cluster_info *info, const uint8_t *data, uint32_t page_size,
		      uint8_t *ret_expanded, uint32_t cluster_size)
{
	memset(ret_expanded, 0, cluster_size);
	for (uint32_t page = 0; page < info->pages; page++) {
		if (lr_states_get(info->states, page) != LR_PAGE_DATA)
			continue;
		memcpy(ret_expanded + (size_t)page * page_size, data, page_size);
		data += page_size;
	}
}
