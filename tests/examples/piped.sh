# A worker of text.upper in shell: convoke worker --pipe 'text.upper=sh piped.sh'
# Neither an id nor a text has a quotation mark here; use jq where they may.
while IFS= read -r line; do
    id=${line#'{"id":"'} id=${id%%'"'*}
    data=${line##*'"data":'} data=${data%'}'}
    case $data in
        '"'*) echo "{\"id\":\"$id\",\"ok\":$(echo "$data" | tr '[:lower:]' '[:upper:]')}" ;;
        *) echo "{\"id\":\"$id\",\"error\":{\"code\":\"invalid_argument\",\"message\":\"not a text\"}}" ;;
    esac
done
