-- Moves dead letters to a stream, and tells so. Put before the scripts that do.

-- For each entry in ARGV from `at` on (its id, the number of words, the names and values of the event's fields), only if
-- it is still a dead letter: the event enters its stream and the letter goes. Returns {error, then for each entry its id
-- as an event, '' for one that was no dead letter any more}, and the ids of those that were moved. After an error nothing
-- more is moved.
local function move_letters(dead, to, at)
  local answer, moved = { '' }, {}
  local kind = redis.call('TYPE', to).ok
  if kind ~= 'none' and kind ~= 'stream' then
    return { 'WRONGTYPE ' .. to .. ' holds a ' .. kind }, moved
  end
  while at <= #ARGV do
    local id, words = ARGV[at], tonumber(ARGV[at + 1])
    local added = ''
    if #redis.call('XRANGE', dead, id, id) > 0 then
      added = redis.pcall('XADD', to, '*', unpack(ARGV, at + 2, at + 1 + words))
      if type(added) == 'table' and added.err then
        answer[1] = added.err
        break
      end
      redis.call('XDEL', dead, id)
      moved[#moved + 1] = id
    end
    answer[#answer + 1] = added
    at = at + 2 + words
  end
  return answer, moved
end

-- Tells what was moved, if the broadcast is within reach.
local function tell_moved(broadcast, run, by, dead, to, moved)
  if not broadcast or #moved == 0 then return end
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', broadcast, '*', 'type', 'operator.replayed', 'source', by, 'time', now, 'data',
    cmsgpack.pack({ run = run, by = by, from = 'dead', stream = dead, to = to, count = #moved, entries = moved }))
end
