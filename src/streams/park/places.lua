-- What is parked of one type, in one sorted set whose scores are all 0: its members are in the order of their bytes.
-- It is put before the scripts that park and release. It has functions only.
--
-- A place is the id of the entry as which an event was parked first, in 41 digits, so that places compare as text. An
-- event that is parked again keeps it. A line is the SHA-1 of a subject in hex; events of one line keep their order.
--
--   o LINE PLACE [ENTRY]   an event of that line waits: parked, or, with ENTRY, released as that entry and not weighed
--   r ENTRY LINE PLACE     that entry is the released event of that place, and not done with
--   s LINE PLACE EVENT     the event (a member of a delay queue), parked since its subject is paused
--   t PLACE LINE EVENT     the event, parked for any other reason; without a subject its line is 40 dashes
--
-- Cost  O(log n) each.
local PLACE, LINE = 41, 40
local NO_LINE = string.rep('-', LINE)

local function padded(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end

local function plain(place)
  local ms, seq = string.match(place, '^0*(%d+)-0*(%d+)$')
  return ms .. '-' .. seq
end

-- The first member that begins so, from one on that is given.
local function first_from(key, start, from)
  return redis.call('ZRANGEBYLEX', key, '[' .. (from or start), '(' .. start .. '\255', 'LIMIT', 0, 1)[1]
end

-- Whether an entry that was released is done with: acknowledged, or deleted.
local function is_settled(stream, group, entry)
  local id = plain(entry)
  if #redis.call('XPENDING', stream, group, id, id, 1) > 0 then return false end
  if #redis.call('XREVRANGE', stream, id, id, 'COUNT', 1) == 0 then return true end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local map = {}
    for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
    if map['name'] == group then return entry <= padded(map['last-delivered-id']) end
  end
  return false
end
