-- Trims a stream to about its history, never past what a group has not read and acknowledged.
--
-- A group still needs its lowest pending entry and everything after what it was last given. Where
-- no group needs anything, length alone decides; else the stream is cut at the oldest entry that a
-- group needs or at the candidate, whichever is older. Only whole nodes are removed.
--
-- KEYS: 1 the stream
-- ARGV: 1 entries to keep, 2 candidate: an id below which entries are history (or empty),
--   3 entries to remove at most
-- Returns: removed, entries ever added, the last id; or nil if there is no stream
-- Cost: O(groups + removed)
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end

local function map(flat)
  local named = {}
  for i = 1, #flat, 2 do
    named[flat[i]] = flat[i + 1]
  end
  return named
end

-- Ids are compared as text: their numbers may not fit a Lua number.
local function number_before(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end

local function before(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then
    return number_before(a_ms, b_ms)
  end
  return number_before(a_seq, b_seq)
end

local stream = map(redis.call('XINFO', 'STREAM', KEYS[1]))
local last = stream['last-generated-id']
local idle, bound = true, nil
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = map(flat)
  local needed = group['last-delivered-id']
  if before(needed, last) then
    idle = false
  end
  if group['pending'] > 0 then
    idle = false
    local lowest = redis.call('XPENDING', KEYS[1], group['name'], '-', '+', 1)[1][1]
    if before(lowest, needed) then
      needed = lowest
    end
  end
  if not bound or before(needed, bound) then
    bound = needed
  end
end

local removed = 0
if idle then
  removed = redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1], 'LIMIT', ARGV[3])
elseif ARGV[2] ~= '' then
  local cut = before(bound, ARGV[2]) and bound or ARGV[2]
  removed = redis.call('XTRIM', KEYS[1], 'MINID', '~', cut, 'LIMIT', ARGV[3])
end
return { removed, stream['entries-added'], last }
