-- Deletes an entry from its stream, if no group needs it any more.
--
-- For an entry that is too large to stay as history: whoever looks at a stream (XINFO STREAM) is shown its
-- first and its last entry whole. A group needs what it was not given yet, and what is pending in it.
--
-- KEYS[1] the stream
-- ARGV[1] the entry's id
-- Returns 1 if it was deleted, else 0
-- Cost    O(groups * log n)
local id = ARGV[1]
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then
  return 0
end
for _, flat in ipairs(groups) do
  local group = {}
  for i = 1, #flat, 2 do
    group[flat[i]] = flat[i + 1]
  end
  if before(group['last-delivered-id'], id)
    or #redis.call('XPENDING', KEYS[1], group['name'], id, id, 1) > 0 then
    return 0
  end
end
return redis.call('XDEL', KEYS[1], id)
