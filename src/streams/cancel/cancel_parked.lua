-- Looks in a part of what is parked of one type for events that are to be cancelled. Changes nothing.
--
-- KEYS[1]  what is parked of the type
-- ARGV[1]  where to go on, as the last call said; '' for the beginning
-- ARGV[2]  members to look at, at most
-- ARGV[3]  bytes of a member that are looked at, at most
-- ARGV[4..] the names of the events
-- Returns  {where to go on, or '' at the end, how many members it looked at, then those that were found}
-- Cost     O(members * log n); ends early once it has looked at half a MiB
local BYTES = 524288
local HEAD = 1 + PLACE + LINE
local most = tonumber(ARGV[3])
local wanted = {}
for i = 4, #ARGV do wanted[ARGV[i]] = true end

local function is_wanted(event)
  if #event > most or not is_event(event) then return false end
  local parts = cmsgpack.unpack(event)
  local name = parts[1]
  for i = 2, #parts, 2 do
    if parts[i] == 'id' then name = parts[i + 1] end
  end
  return wanted[name] or wanted[parts[1]]
end

local answer, bytes = { '', 0 }, 0
local from = ARGV[1] ~= '' and '(' .. ARGV[1] .. '\255' or '[s'
for _ = 1, tonumber(ARGV[2]) do
  local member = redis.call('ZRANGEBYLEX', KEYS[1], from, '(u', 'LIMIT', 0, 1)[1]
  if not member then
    answer[1] = ''
    return answer
  end
  local head = string.sub(member, 1, HEAD)
  bytes, answer[2] = bytes + #member, answer[2] + 1
  if is_wanted(string.sub(member, HEAD + 1)) then answer[#answer + 1] = member end
  from, answer[1] = '(' .. head .. '\255', head
  if bytes > BYTES then break end
end
return answer
