-- Looks in a part of a stream for entries of events that are to be cancelled, the first one first. Changes nothing.
--
-- An event is named by its field `id`, of several the last one, or by its entry. Of an entry that is larger than is
-- asked for nothing but its id is shown.
--
-- KEYS[1]  the stream
-- ARGV[1]  the group
-- ARGV[2]  the first entry to look at
-- ARGV[3]  the last one
-- ARGV[4]  entries to look at, at most
-- ARGV[5]  bytes of an entry that are shown at most
-- ARGV[6..] the names of the events; without any, all entries are found
-- Returns  {now (ms), the entry to go on from or '', how many entries it looked at, then for each that was found: {its
--          entry, how it stands, its delivery count, its fields}}. It stands `unread`, `settled`, or `held` with `:` and its consumer
-- Cost     O(entries + found * log n); ends early once it has looked at half a MiB. It reads no more than four entries
--          at a time, and one by one where they are large: anybody may add some of any size
local stream, group = KEYS[1], ARGV[1]
local BYTES = 524288
local STEP = 4 -- entries that are read at a time
local LARGE = 16384 -- bytes of those behind which they are read one by one
local most = tonumber(ARGV[5])
local wanted = {}
for i = 6, #ARGV do wanted[ARGV[i]] = true end
local all = #ARGV < 6

local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local has_group, read = false, '0-0'
local groups = redis.pcall('XINFO', 'GROUPS', stream)
for _, flat in ipairs(groups.err and {} or groups) do
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  if map['name'] == group then has_group, read = true, map['last-delivered-id'] end
end

local function name_of(id, fields)
  for i = #fields - 1, 1, -2 do
    if fields[i] == 'id' then return fields[i + 1] end
  end
  return id
end

local answer, bytes, from, left = { now, '', 0 }, 0, ARGV[2], tonumber(ARGV[4])
local step = 1
while left > 0 and bytes < BYTES do
  local count = math.min(step, left)
  local page = redis.call('XRANGE', stream, from, ARGV[3], 'COUNT', count)
  local size = 0
  for _, entry in ipairs(page) do
    local id, fields, own = entry[1], entry[2], 0
    for _, word in ipairs(fields) do own = own + #word end
    size = size + own
    if all or wanted[id] or wanted[name_of(id, fields)] then
      local pending = has_group and redis.call('XPENDING', stream, group, id, id, 1)[1]
      local stands = pending and 'held:' .. pending[2] or (before(read, id) and 'unread' or 'settled')
      answer[#answer + 1] = { id, stands, pending and pending[4] or 0, own <= most and fields or {} }
    end
  end
  bytes, left, answer[3] = bytes + size, left - count, answer[3] + #page
  if #page < count then return answer end
  from = '(' .. page[count][1]
  step = size < LARGE and STEP or 1
end
answer[2] = from
return answer
