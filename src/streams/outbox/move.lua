-- Moves entries of an outbox to streams of this slot, each once.
--
-- What was moved is known by the outbox's name and the id of the last one: the ids of an outbox only rise, and who
-- moves begins at its start, so several may move at a time and what comes again is left out.
--
-- KEYS[1]   what was moved here last, by outbox (hash)
-- KEYS[2..] the streams
-- ARGV[1]   the outbox
-- ARGV[2]   for each stream 1 if it was made once: one that is not there now is not made; else 0
-- ARGV[3..] for each entry, in the order of their ids: ms and number of its id, which of the streams, the number of
--           words, the words
-- Returns   how many of the entries are moved now, by whoever; and what the next one could not be added for, if
--           anything
-- Cost      O(entries)
local seen = redis.call('HGET', KEYS[1], ARGV[1]) or '0-0'
local ms, number = string.match(seen, '^(%d+)-(%d+)$')
ms, number = tonumber(ms), tonumber(number)
local at, moved, last, why = 3, 0, nil, nil
while ARGV[at] do
  local its_ms, its_number = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local words = tonumber(ARGV[at + 3])
  if its_ms > ms or (its_ms == ms and its_number > number) then
    local to = tonumber(ARGV[at + 2])
    local command = { 'XADD', KEYS[to + 1] }
    if string.sub(ARGV[2], to, to) == '1' then
      command[#command + 1] = 'NOMKSTREAM'
    end
    command[#command + 1] = '*'
    for word = 1, words do
      command[#command + 1] = ARGV[at + 3 + word]
    end
    local added = redis.pcall(unpack(command))
    if not added then
      why = 'NOSTREAM the stream was made once, and is not there'
      break
    end
    if type(added) == 'table' and added.err then
      why = added.err
      break
    end
    last = ARGV[at] .. '-' .. ARGV[at + 1]
  end
  moved = moved + 1
  at = at + 4 + words
end
if last then
  redis.call('HSET', KEYS[1], ARGV[1], last)
end
return { moved, why or false }
